/* The nine functions that TensorRT's Python bindings import, each of which does nothing and returns null.
   Compiled under the names of TensorRT's libraries, this lets the genuine bindings be imported where TensorRT is not
   installed, so that their members and signatures can be read. Nothing of TensorRT can run with it. */
#define NOTHING(name) \
    void *name(void) { return 0; }

NOTHING(createInferBuilder_INTERNAL)
NOTHING(createInferRefitter_INTERNAL)
NOTHING(createInferRuntime_INTERNAL)
NOTHING(createNvOnnxParser_INTERNAL)
NOTHING(createNvOnnxParserRefitter_INTERNAL)
NOTHING(getBuilderPluginRegistry)
NOTHING(getNvOnnxParserVersion)
NOTHING(getPluginRegistry)
NOTHING(initLibNvInferPlugins)
