"""What tests build and compare with, a file for each kind; all of it computes on one thread."""

import torch
from threadpoolctl import threadpool_limits

# tiny models and tiny classifiers: two threads only wait for each other, in processes that tests start as well
torch.set_num_threads(1)
threadpool_limits(limits=1)
