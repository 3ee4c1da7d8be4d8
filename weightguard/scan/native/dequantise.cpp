// weightguard.scan._native.dequantise: GGML blocks to binary32, with the lock released.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>

#include "dequantise_blocks.hpp"
#include "dispatch.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace weightguard;

void bind_dequantise(nb::module_&);

namespace {

using Blocks = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

struct TypeRow {
    const char* name;
    size_t bytes, elements;
    void (*run)(const uint8_t* blocks, uint64_t count, float* out);
};

template <class Type>
constexpr TypeRow row(const char* name) {
    return {name, Type::bytes, Type::elements, ggml::dequantise<Type>};
}

constexpr TypeRow kTypes[] = {
    row<ggml::Q4_0>("Q4_0"), row<ggml::Q4_1>("Q4_1"),   row<ggml::Q5_0>("Q5_0"),
    row<ggml::Q5_1>("Q5_1"), row<ggml::Q8_0>("Q8_0"),   row<ggml::Q2_K>("Q2_K"),
    row<ggml::Q3_K>("Q3_K"), row<ggml::Q4_K>("Q4_K"),   row<ggml::Q5_K>("Q5_K"),
    row<ggml::Q6_K>("Q6_K"), row<ggml::TQ1_0>("TQ1_0"), row<ggml::TQ2_0>("TQ2_0"),
};

void dequantise(const std::string& name, const Blocks& blocks, const Floats& out) {
    for (const TypeRow& type : kTypes) {
        if (name != type.name) continue;
        const size_t count = blocks.shape(0);
        if (blocks.shape(1) != type.bytes) throw nb::value_error("blocks: wrong block size");
        if (out.shape(0) % type.elements || out.shape(0) / type.elements != count)
            throw nb::value_error("out: wrong length");
        nb::gil_scoped_release unlocked;
        const FloatEnvironment environment;
        type.run(blocks.data(), count, out.data());
        return;
    }
    throw nb::value_error("unknown block type");
}

}  // namespace

void bind_dequantise(nb::module_& m) {
    m.def("dequantise", &dequantise, "name"_a, "blocks"_a.noconvert(), "out"_a.noconvert());
}
