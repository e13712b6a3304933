"""Found by Python when it starts with this folder in its path: writes down and refuses what leaves this machine."""

import os
import sys


def guard(event: str, arguments: tuple) -> None:
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return
    address = arguments[1] if event == "socket.connect" else arguments
    host = address[0] if isinstance(address, tuple) else address
    if host not in (None, "127.0.0.1", "localhost", "::1", "0.0.0.0"):
        with open(os.environ["REACHED"], "a") as file:
            print(event, address, file=file)
        raise OSError(f"{address} is not this machine")


sys.addaudithook(guard)
