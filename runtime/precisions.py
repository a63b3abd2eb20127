"""Names of precisions: the long ones of bundles and engines, and the short ones that people may use for them."""

LONG = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
SHORT = {long: short for short, long in LONG.items()}


def precision_name(text: str | None) -> str | None:
    """A precision by its long name: "fp16" is "float16"; others stay as they are."""
    return text if text is None else LONG.get(text.lower(), text)
