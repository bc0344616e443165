"""A stand-in for the Hugging Face Hub on loopback: what huggingface_hub asks when it reads, answered from folders.

    hub = HubServer()
    os.environ.update(hub.environment(home))     # before huggingface_hub is imported
    hub.publish("owner/name", folder)
    ...                                          # use the Hub
    hub.bytes_sent("model.safetensors")

`store` holds repositories, `routes` turns a request into a reply, `replies` knows headers and ranges, `server` runs
them. Weights are redirected to another host name, as the real Hub does to its storage.
"""

from .server import HubServer
from .store import Repo, Request

__all__ = ["HubServer", "Repo", "Request"]
