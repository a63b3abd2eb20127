"""The README of a model repository: how it is started in production and asked."""

from collections.abc import Mapping

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.serving.model_repository.model_configuration import Serving
from vocabseg.serving.model_repository.production import TRITON

TEXT = """# {name}: {bundle} on Triton Inference Server

Written by `vocabseg triton`. The folder `{name}` is a model of Triton's Python backend around the vocabseg runtime,
with the bundle inside; `{name}/config.pbtxt` has every setting, `grafana.json` is a dashboard for its metrics.

## Start

The server's container needs the package vocabseg. In a folder that holds its source, once:

```
docker build -t vocabseg-triton -f - . <<'END'
FROM {triton}
COPY . /tmp/vocabseg
RUN pip install "/tmp/vocabseg[{extra}]"
END
```

Then, in this folder:

```
docker compose up --detach
```

This starts Triton and, before it, Caddy as a proxy, at 127.0.0.1: ports 8000 (HTTP) and 8001 (gRPC). `Caddyfile`
limits bodies and headers, refuses packed ones, and passes on what clients of this model need; without a key that
nobody knows, Triton does nothing else (`compose.yaml`). Neither asks who calls: before they leave 127.0.0.1, give the
proxy a name (it then gets a certificate) and say who may use it. Keep Triton's image current: a single request can end
old ones.

A volume keeps text embeddings over restarts; tensors pass through shared memory, hence `shm_size`. When a model process
dies, or is stuck for `max_step_seconds`, the server ends and the container starts again; clients try again meanwhile.
Without a container: `vocabseg serve BUNDLE`.

## Requests

```python
from vocabseg.client import Client

with Client("http://127.0.0.1:8000", model="{name}") as client:
    result = client("photo.jpg", ["cat", "grass", "sky"])
```

Vocabularies that requests can name: {named}.

Health: GET /v2/health/live, /v2/health/ready, /v2/models/{name}/ready. Metrics: port 8002 of 127.0.0.1, /metrics.
"""


def readme(bundle: Bundle, serving: Serving, named: Mapping[str, Vocabulary]) -> str:
    """The text, for this model."""
    own = ["the bundle's own (where a request has no names)"] if bundle.manifest.vocabulary is not None else []
    return TEXT.format(
        name=serving.name,
        bundle=bundle.manifest.name,
        extra=",".join(("gpu" if serving.gpus else "cpu", *bundle.manifest.packages)),
        triton=TRITON,
        named=", ".join([*(f"`{name}`" for name in named), *own]) or "none",
    )
