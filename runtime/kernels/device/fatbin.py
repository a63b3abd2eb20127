"""The compiled CUDA kernels, which are part of an installation if nvcc was found."""

from importlib import resources

from vocabseg.runtime.errors import EngineError


def kernels_fatbin() -> bytes:
    """The compiled kernels; raises EngineError if they were not built."""
    path = resources.files("vocabseg.runtime.kernels.device").joinpath("kernels.fatbin")
    if not path.is_file():
        raise EngineError(
            "the CUDA kernels are not part of this installation: put nvcc of a CUDA toolkit (12.8 or newer supports "
            "all GPUs) on PATH and reinstall vocabseg, or use device 'cpu'"
        )
    return path.read_bytes()
