"""A Ray cluster of two nodes with a CPU each on this machine, as a program: it prints the address, and reads orders.

The order "kill" ends the second node with all its processes at once. At the end of its input the cluster is shut down.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    second = cluster.add_node(**node)
    print(f"address {cluster.address}", flush=True)
    for order in sys.stdin:
        if order.strip() == "kill":
            cluster.remove_node(second, allow_graceful=False)
            print("killed", flush=True)
    cluster.shutdown()
