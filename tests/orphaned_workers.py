"""Start a data worker of training, print its process id, and wait."""

import multiprocessing
import time

from conftest import tiny_config

from tp_jax import data


def main() -> None:
    config = tiny_config()
    config.data.workers = 1
    iterator = data.make_iterator(data.open_source(config), config)
    next(iterator)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main()
