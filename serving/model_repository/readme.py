"""The README of a model repository: how it is started in production and asked."""

from collections.abc import Mapping

from vocabseg.runtime.bundle.folder import Bundle
from vocabseg.runtime.text.vocabulary import Vocabulary
from vocabseg.serving.model_repository.model_configuration import Serving

TEXT = """# {name}: {bundle} on Triton Inference Server

Written by `vocabseg triton`. The folder `{name}` is a model of Triton's Python backend around the vocabseg runtime,
with the bundle inside; `{name}/config.pbtxt` has every setting, `grafana.json` is a dashboard for its metrics.

## Start

The server's container needs the package vocabseg. In a folder that holds its source, once:

```
docker build -t vocabseg-triton -f - . <<'END'
FROM nvcr.io/nvidia/tritonserver:25.08-py3
COPY . /tmp/vocabseg
RUN pip install "/tmp/vocabseg[{extra}]"
END
```

Then, with this folder as $PWD:

```
docker run --restart unless-stopped{gpus} --shm-size=1g --stop-timeout 40 \\
  -p 127.0.0.1:8000-8002:8000-8002 -v $PWD:/models:ro -v vocabseg-cache:/cache -e VOCABSEG_CACHE_DIR=/cache \\
  vocabseg-triton tritonserver --model-repository=/models --exit-timeout-secs=30
```

The volume keeps text embeddings over restarts; tensors pass through shared memory, hence `--shm-size`. When a model
process dies, the server ends and the container starts again; clients try again meanwhile. Without a container:
`vocabseg serve BUNDLE`. Triton has no access control: put a proxy before it that has, if it is to leave 127.0.0.1.

## ImageRequest

```python
from vocabseg.client import Client

with Client("http://127.0.0.1:8000", model="{name}") as client:
    result = client("photo.jpg", ["cat", "grass", "sky"])
```

Vocabularies that requests can name: {named}.

Health: GET /v2/health/live, /v2/health/ready, /v2/models/{name}/ready. Metrics: port 8002, /metrics.
"""


def readme(bundle: Bundle, serving: Serving, named: Mapping[str, Vocabulary]) -> str:
    """The text, for this model."""
    own = ["the bundle's own (where a request has no names)"] if bundle.manifest.vocabulary is not None else []
    return TEXT.format(
        name=serving.name,
        bundle=bundle.manifest.name,
        extra="gpu" if serving.gpus else "cpu",
        gpus=" --gpus all" if serving.gpus else "",
        named=", ".join([*(f"`{name}`" for name in named), *own]) or "none",
    )
