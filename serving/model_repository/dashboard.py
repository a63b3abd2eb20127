"""A Grafana dashboard for a served model: requests, queue, batches, regions, stages and the text cache."""

from typing import Any

WIDTH, HEIGHT = 8, 7


def panels(model: str) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Title, unit, and (PromQL, legend) of each panel."""
    own = f'{{model="{model}"}}'

    def rate(metric: str, by: str = "") -> str:
        return f"sum{f' by ({by})' if by else ''} (rate({metric}{own}[1m]))"

    def share(part: str, whole: str) -> str:
        return f"{rate(part)} / {rate(whole)}"

    succeeded, failed = "nv_inference_request_success", "nv_inference_request_failure"
    return [
        ("Requests", "reqps", [(rate(succeeded), "answered"), (rate(failed, "reason"), "refused: {{reason}}")]),
        ("Images", "ops", [(rate("vocabseg_images_total"), "images"), (rate("vocabseg_rejected_total"), "rejected")]),
        (
            "Time of a request",
            "s",
            [
                # Triton's own durations end when the model has taken a batch.
                (f"{share('nv_inference_queue_duration_us', succeeded)} / 1e6", "waiting"),
                (share("vocabseg_request_seconds_total", succeeded), "in the model"),
            ],
        ),
        ("Requests waiting", "short", [(f"sum(nv_inference_pending_request_count{own})", "waiting")]),
        ("Images per batch", "short", [(share("nv_inference_count", "nv_inference_exec_count"), "images")]),
        ("Regions per image", "short", [(share("vocabseg_regions_total", "vocabseg_images_total"), "regions")]),
        ("Stages, busy share", "percentunit", [(rate("vocabseg_stage_seconds_total", "stage"), "{{stage}}")]),
        ("Networks, busy share", "percentunit", [(rate("vocabseg_graph_seconds_total", "graph"), "{{graph}}")]),
        ("Class names by source", "ops", [(rate("vocabseg_names_total", "source"), "{{source}}")]),
    ]


def dashboard(model: str) -> dict[str, Any]:
    """The dashboard as Grafana imports it; the data source is chosen when it is imported."""
    return {
        "title": f"vocabseg: {model}",
        "uid": f"vocabseg-{model}"[:40],
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {
            "list": [{"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [_panel(number, *panel) for number, panel in enumerate(panels(model))],
    }


def _panel(number: int, title: str, unit: str, queries: list[tuple[str, str]]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": number % 3 * WIDTH, "y": number // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": expression, "legendFormat": legend, "datasource": source}
            for place, (expression, legend) in enumerate(queries)
        ],
    }
