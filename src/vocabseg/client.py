"""The client of a served bundle: `vocabseg.client.Client("http://host:8000")(image, ["cat", "grass"])`."""

from vocabseg.serving.client.async_client import AsyncClient
from vocabseg.serving.client.sync_client import Client

__all__ = ["AsyncClient", "Client"]
