"""What a model repository brings along for production: a proxy before the server, and a file that starts both."""

from vocabseg.serving.model_repository.model_configuration import Serving
from vocabseg.serving.protocol import restrictions

TRITON = "nvcr.io/nvidia/tritonserver:26.10-py3"
PROXY = "caddy:2.11-alpine"
# Bytes of a request beside its image: names, parameters, the tensors' description.
BESIDE = 4_000_000

CADDYFILE = """# Caddy passes on what clients of the model need, within limits; all else ends here.
# For a server on the internet, put its name before the port: Caddy then gets a certificate. Who may call at all can be
# said with basic_auth or forward_auth: https://caddyserver.com/docs/caddyfile/directives
{{
	admin off
	servers {{
		protocols h1 h2 h2c
		max_header_size 16KB
		timeouts {{
			read_header 10s
			read_body 60s
			idle 5m
		}}
	}}
}}

(limits) {{
	# A few packed kilobytes can unpack to gigabytes.
	@packed {{
		header Content-Encoding *
		not header Content-Encoding identity
	}}
	respond @packed "send it unpacked" 415
	@packed_call {{
		header Grpc-Encoding *
		not header Grpc-Encoding identity
	}}
	respond @packed_call "send it unpacked" 415
	request_body {{
		max_size {body}
	}}
}}

:{{$HTTP_PORT:8000}} {{
	route {{
		import limits
		# Triton keeps a list of a body's chunks, which may be of one byte each.
		@unsized {{
			method POST
			not header Content-Length *
		}}
		respond @unsized "say the length" 411
		@wanted path /v2 /v2/health/* /v2/models/{name} /v2/models/{name}/ready /v2/models/{name}/infer
		reverse_proxy @wanted {{$TRITON_HTTP:triton:8000}}
		respond 404
	}}
}}

:{{$GRPC_PORT:8001}} {{
	route {{
		import limits
		@wanted path_regexp ^/inference\\.GRPCInferenceService/(Server|Model)(Infer|Live|Ready|Metadata)$
		reverse_proxy @wanted h2c://{{$TRITON_GRPC:triton:8001}}
		respond 404
	}}
}}
"""

COMPOSE = """# Started with `docker compose up --detach` in this folder; see README.md.
services:
  triton:
    image: vocabseg-triton
    restart: unless-stopped
    stop_grace_period: 40s
    shm_size: 1g
    security_opt: ["no-new-privileges:true"]
    # Nobody needs to know the key, so it is another one at every start.
    command:
      - sh
      - -c
      - >-
        key=$$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n') &&
        exec tritonserver --model-repository=/models --exit-timeout-secs=30 --disable-auto-complete-config
        {restrictions}
    environment:
      VOCABSEG_CACHE_DIR: /cache
    volumes:
      - .:/models:ro
      - cache:/cache
    ports:
      - 127.0.0.1:8002:8002
{gpus}  proxy:
    image: {proxy}
    restart: unless-stopped
    volumes:
      - ./Caddyfile:/etc/caddy/Caddyfile:ro
    ports:
      - 127.0.0.1:8000:8000
      - 127.0.0.1:8001:8001
volumes:
  cache:
"""

GPUS = """    deploy:
      resources:
        reservations:
          devices:
            - driver: nvidia
              count: all
              capabilities: [gpu]
"""


def caddyfile(serving: Serving) -> str:
    """The proxy's configuration. A request may be as long as its largest image, as a file or as pixels."""
    body = max(serving.limits.max_image_bytes, 3 * serving.limits.max_pixels) + BESIDE
    return CADDYFILE.format(name=serving.name, body=body)


def compose(serving: Serving) -> str:
    """The services of Docker Compose."""
    return COMPOSE.format(restrictions=" ".join(restrictions("$$key")), proxy=PROXY, gpus=GPUS if serving.gpus else "")
