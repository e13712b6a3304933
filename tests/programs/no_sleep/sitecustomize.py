"""Found by Python when it starts with this folder in its path: nothing waits."""

import time

time.sleep = lambda seconds: None
