// The Python extension vocabseg.runtime.kernels.host._native. face.py checks shapes, types and ranges before it calls anything here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "compose.h"
#include "crops.h"
#include "masks.h"
#include "resize.h"

namespace nb = nanobind;
using namespace nb::literals;
using vocabseg::Size;

namespace {

template <class T, size_t Dimensions>
using Array = nb::ndarray<T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Image = Array<const uint8_t, 3>;
using Masks = Array<const float, 3>;
using Vector = Array<const float, 1>;
using Pair = std::pair<int, int>;

Size size_of(const Pair& pair) { return {pair.first, pair.second}; }
int length(size_t n) { return static_cast<int>(n); }

void resize_normalize(Image image, Pair size, Pair padded, Vector mean, Vector deviation, int threads,
                      Array<float, 4> network_input, Array<uint8_t, 3> resized) {
    vocabseg::resize_normalize(image.data(), length(image.shape(0)), length(image.shape(1)), size.first, size.second,
                               padded.first, padded.second, mean.data(), deviation.data(), threads,
                               network_input.data(), resized.data());
}

void region_boxes(Masks masks, Pair padded, Pair image, double threshold, int threads, Array<int32_t, 2> boxes,
                  Array<int32_t, 1> areas) {
    vocabseg::region_boxes(masks.data(), length(masks.shape(0)), {length(masks.shape(1)), length(masks.shape(2))},
                           size_of(padded), size_of(image), threshold, threads, boxes.data(), areas.data());
}

void region_bits(Masks masks, Pair padded, Pair image, double threshold, int threads, Array<uint32_t, 3> bits) {
    vocabseg::region_bits(masks.data(), length(masks.shape(0)), {length(masks.shape(1)), length(masks.shape(2))},
                          size_of(padded), size_of(image), threshold, threads, bits.data());
}

void crop_regions(Image image, Masks masks, Pair padded, Array<const int32_t, 2> boxes, Array<const int32_t, 1> indices,
                  double threshold, bool matting, Vector fill, Vector mean, Vector deviation, int threads,
                  Array<float, 4> crops) {
    const vocabseg::CropSettings settings{threshold,   matting,          fill.data(),
                                          mean.data(), deviation.data(), length(crops.shape(2))};
    vocabseg::crop_regions(image.data(), {length(image.shape(0)), length(image.shape(1))}, masks.data(),
                           {length(masks.shape(1)), length(masks.shape(2))}, size_of(padded), boxes.data(),
                           indices.data(), length(boxes.shape(0)), settings, threads, crops.data());
}

void patch_masks(Masks masks, Pair padded, Pair image, Array<const int32_t, 2> boxes, Array<const int32_t, 1> indices,
                 double threshold, bool matting, int size, int threads, Array<float, 3> patches) {
    vocabseg::patch_masks(masks.data(), {length(masks.shape(1)), length(masks.shape(2))}, size_of(padded),
                          size_of(image), boxes.data(), indices.data(), length(boxes.shape(0)),
                          vocabseg::patch_limit(threshold, matting), size, length(patches.shape(1)), threads,
                          patches.data());
}

vocabseg::OutputMasks output_masks(const Masks& masks, const Pair& padded, const Pair& image, size_t h, size_t w) {
    return {masks.data(),    length(masks.shape(0)), {length(masks.shape(1)), length(masks.shape(2))},
            size_of(padded), size_of(image),         {length(h), length(w)}};
}

vocabseg::ClassTable class_table(const Array<const float, 2>& probabilities) {
    return {probabilities.data(), length(probabilities.shape(0)), length(probabilities.shape(1))};
}

void compose(Masks masks, Array<const float, 2> probabilities, Pair padded, Pair image, int threads,
             Array<int32_t, 2> labels, Array<float, 2> scores) {
    vocabseg::compose(output_masks(masks, padded, image, labels.shape(0), labels.shape(1)), class_table(probabilities),
                      threads, labels.data(), scores.data());
}

void class_scores(Masks masks, Array<const float, 2> probabilities, Pair padded, Pair image, int threads,
                  Array<float, 3> scores) {
    vocabseg::class_scores(output_masks(masks, padded, image, scores.shape(1), scores.shape(2)),
                           class_table(probabilities), threads, scores.data());
}

void resample_masks(Masks masks, Pair padded, Pair image, int threads, Array<float, 3> probabilities) {
    vocabseg::resample_masks(
        output_masks(masks, padded, image, probabilities.shape(1), probabilities.shape(2)), threads,
        probabilities.data());
}

std::vector<std::string> variants() {
    std::vector<std::string> names;
    for (const vocabseg::Loops* variant : vocabseg::variants()) names.push_back(variant->name);
    return names;
}

std::string variant() { return vocabseg::loops().name; }

}  // namespace

NB_MODULE(_native, module) {
    using Free = nb::call_guard<nb::gil_scoped_release>;
    const auto image = "image"_a.noconvert(), masks = "mask_logits"_a.noconvert();
    const auto probabilities = "class_probabilities"_a.noconvert(), scores = "scores"_a.noconvert();
    const auto fill = "fill"_a.noconvert(), mean = "mean"_a.noconvert(), deviation = "std"_a.noconvert();
    const auto boxes = "boxes"_a.noconvert();
    module.def("resize_normalize", &resize_normalize, image, "size"_a, "padded_size"_a, mean, deviation, "threads"_a,
               "network_input"_a.noconvert(), "resized"_a.noconvert(), Free());
    module.def("region_boxes", &region_boxes, masks, "padded_size"_a, "image_size"_a, "threshold"_a, "threads"_a, boxes,
               "areas"_a.noconvert(), Free());
    module.def("region_bits", &region_bits, masks, "padded_size"_a, "image_size"_a, "threshold"_a, "threads"_a,
               "bits"_a.noconvert(), Free());
    module.def("crop_regions", &crop_regions, image, masks, "padded_size"_a, boxes, "indices"_a.noconvert(),
               "threshold"_a, "matting"_a, fill, mean, deviation, "threads"_a, "crops"_a.noconvert(), Free());
    module.def("patch_masks", &patch_masks, masks, "padded_size"_a, "image_size"_a, boxes, "indices"_a.noconvert(),
               "threshold"_a, "matting"_a, "size"_a, "threads"_a, "patches"_a.noconvert(), Free());
    module.def("compose", &compose, masks, probabilities, "padded_size"_a, "image_size"_a, "threads"_a,
               "labels"_a.noconvert(), scores, Free());
    module.def("class_scores", &class_scores, masks, probabilities, "padded_size"_a, "image_size"_a, "threads"_a,
               scores, Free());
    module.def("resample_masks", &resample_masks, masks, "padded_size"_a, "image_size"_a, "threads"_a,
               "probabilities"_a.noconvert(), Free());
    module.def("variants", &variants);
    module.def("variant", &variant);
    module.def("choose_variant", &vocabseg::choose_variant, "name"_a);
}
