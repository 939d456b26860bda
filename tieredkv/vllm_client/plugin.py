"""Entry point `vllm.general_plugins`: makes "kv_connector": "TieredKVConnector" known to vLLM.

Runs in every process of vLLM, perhaps more than once; imports nothing heavy.
"""

from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.v1.kv_offload.factory import OffloadingSpecFactory

CONNECTOR = "TieredKVConnector"
SPEC = "TieredKVSpec"


def register() -> None:
    """Register the connector and its spec, once."""
    if CONNECTOR not in KVConnectorFactory._registry:  # pyright: ignore[reportPrivateUsage] - no public way to ask
        KVConnectorFactory.register_connector(CONNECTOR, "tieredkv.vllm_client.connector", CONNECTOR)
    if SPEC not in OffloadingSpecFactory._registry:  # pyright: ignore[reportPrivateUsage] - the same
        OffloadingSpecFactory.register_spec(SPEC, "tieredkv.vllm_client.spec", SPEC)
