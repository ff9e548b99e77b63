"""A Ray cluster that tells its address and lasts until stdin ends: ``ray_cluster_program.py CPUS FOLDER``."""

from __future__ import annotations

import logging
import sys

import ray

if __name__ == "__main__":
    context = ray.init(
        num_cpus=int(sys.argv[1]),
        _temp_dir=sys.argv[2],
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=80 << 20,
    )
    sys.stdout.write(f"{context.address_info['gcs_address']}\n")
    sys.stdout.flush()
    sys.stdin.read()
    ray.shutdown()
