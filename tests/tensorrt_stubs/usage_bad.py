"""Calls of TensorRT that its stubs must refuse: removed flags and methods, arguments in the wrong order or of the wrong
type. test_tensorrt_types.py counts them; every line with ERROR has to be one.
"""

import tensorrt as trt


def build(builder: trt.Builder, config: trt.IBuilderConfig, network: trt.INetworkDefinition) -> None:
    config.set_flag(trt.BuilderFlag.FP16_ALWAYS)  # ERROR
    builder.build_engine(network, config)  # ERROR
    builder.build_serialized_network(config, network)  # ERROR
    config.max_workspace_size = 1 << 30  # ERROR
    config.set_memory_pool_limit(1 << 30, trt.MemoryPoolType.WORKSPACE)  # ERROR
    config.add_optimization_profile(network)  # ERROR
    profile = builder.create_optimization_profile()
    profile.set_shape("crops", 1, 2, 3)  # ERROR
    profile.set_shape((1, 3), (2, 3), (3, 3), "crops")  # ERROR


def run(engine: trt.ICudaEngine, context: trt.IExecutionContext, runtime: trt.Runtime) -> None:
    context.execute_async_v2([1, 2], 3)  # ERROR
    context.set_tensor_address(1, "crops")  # ERROR
    context.set_device_memory(1)  # ERROR
    engine.get_tensor_profile_shape(0, "crops")  # ERROR
    engine.get_binding_index("crops")  # ERROR
    runtime.deserialize_cuda_engine("image_encoder.plan")  # ERROR
    print(runtime.deserialize_cuda_engine(b"").num_io_tensors)  # ERROR: None where it fails


class Monitor(trt.IProgressMonitor):
    def step_complete(self, phase_name: str) -> bool:  # ERROR
        return True


def removed_in_11(builder: trt.Builder, config: trt.IBuilderConfig, engine: trt.ICudaEngine) -> None:
    config.set_flag(trt.BuilderFlag.FP16)  # ERROR 11
    config.set_flag(trt.BuilderFlag.INT8)  # ERROR 11
    builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH))  # ERROR 11
    print(engine.device_memory_size)  # ERROR 11
    engine.create_execution_context_without_device_memory()  # ERROR 11
    print(builder.platform_has_fast_fp16)  # ERROR 11
