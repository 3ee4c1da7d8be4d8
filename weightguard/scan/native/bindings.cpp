// The Python module weightguard.scan._native. Arguments are checked here, so that no call with
// wrong sizes can read or write outside its arrays; the lock is released while a block is scanned.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <optional>
#include <string>

#include "dispatch.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace weightguard;

void bind_dequantise(nb::module_&);

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<uint64_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;
using Maxima = nb::ndarray<nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Counts = nb::ndarray<uint64_t, nb::shape<counts>, nb::c_contig, nb::device::cpu>;
using Sums = nb::ndarray<double, nb::shape<2>, nb::c_contig, nb::device::cpu>;

struct FormatRow {
    const char* name;
    Format format;
    unsigned bits;
};

constexpr FormatRow kFormats[] = {
    {"BOOL", Format::u8, 8},          {"U2", Format::u2, 2},
    {"U4", Format::u4, 4},            {"U8", Format::u8, 8},
    {"U16", Format::u16, 16},         {"U32", Format::u32, 32},
    {"U64", Format::u64, 64},         {"I2", Format::i2, 2},
    {"I4", Format::i4, 4},            {"I8", Format::i8, 8},
    {"I16", Format::i16, 16},         {"I32", Format::i32, 32},
    {"I64", Format::i64, 64},         {"F64", Format::f64, 64},
    {"F32", Format::f32, 32},         {"F16", Format::f16, 16},
    {"BF16", Format::bf16, 16},       {"F8_E4M3", Format::e4m3, 8},
    {"F8_E5M2", Format::e5m2, 8},     {"F8_E4M3FNUZ", Format::e4m3fnuz, 8},
    {"F8_E5M2FNUZ", Format::e5m2fnuz, 8}, {"F8_E8M0", Format::e8m0, 8},
    {"F6_E2M3", Format::e2m3, 6},     {"F6_E3M2", Format::e3m2, 6},
    {"F4", Format::f4, 4},
};

constexpr uint64_t kMost = uint64_t{1} << 62;  // no sum of two checked numbers wraps

void require(bool condition, const char* message) {
    if (!condition) throw nb::value_error(message);
}

// Rows touched by `n` items from item `start` on.
uint64_t rows_touched(uint64_t start, uint64_t n, uint64_t row_items) {
    return n ? (start % row_items + n - 1) / row_items + 1 : 0;
}

Residues residue_task(const Bytes& data, uint64_t start, uint64_t nbytes, uint64_t row_bytes,
                      unsigned word_bytes, const Rows& out) {
    require(word_bytes == 1 || word_bytes == 2 || word_bytes == 4, "words have 1, 2 or 4 bytes");
    require(start < kMost && row_bytes < kMost && row_bytes > 0, "sizes out of range");
    require(start % word_bytes == 0 && nbytes % word_bytes == 0 && row_bytes % word_bytes == 0,
            "start, nbytes and row_bytes must be whole words");
    require(nbytes <= data.shape(0), "fewer bytes than asked for");
    require(rows_touched(start, nbytes, row_bytes) == out.shape(0), "residues: wrong row count");
    return {data.data(), start, nbytes, row_bytes, word_bytes, out.data()};
}

Statistics statistics_task(unsigned code, const Bytes& values, uint64_t first, uint64_t scalars,
                           uint64_t row_scalars, const Maxima& magnitudes,
                           const std::optional<Maxima>& columns, const Counts& count,
                           const Sums& sums) {
    require(code < sizeof kFormats / sizeof kFormats[0], "unknown format");
    const FormatRow& row = kFormats[code];
    const unsigned storage = row.bits < 8 ? 8 : row.bits;
    require(first < kMost && row_scalars < kMost && row_scalars > 0, "sizes out of range");
    require(scalars < kMost / 64 && (scalars * row.bits + 7) / 8 <= values.shape(0),
            "fewer scalars than asked for");
    const auto fits = [&](const Maxima& maxima) {
        return maxima.dtype().code == static_cast<uint8_t>(nb::dlpack::dtype_code::UInt) &&
               maxima.dtype().bits == storage && maxima.dtype().lanes == 1;
    };
    require(fits(magnitudes) && rows_touched(first, scalars, row_scalars) == magnitudes.shape(0),
            "magnitudes: wrong dtype or row count");
    require(!columns || (fits(*columns) && columns->shape(0) == row_scalars),
            "columns: wrong dtype or length");
    return {row.format,        values.data(), first,        scalars,    row_scalars,
            magnitudes.data(), columns ? columns->data() : nullptr, count.data(), sums.data()};
}

void residues(const Bytes& data, uint64_t start, uint64_t nbytes, uint64_t row_bytes,
              unsigned word_bytes, const Rows& out) {
    const Residues task = residue_task(data, start, nbytes, row_bytes, word_bytes, out);
    nb::gil_scoped_release unlocked;
    active_kernel().residues(task);
}

void statistics(unsigned code, const Bytes& values, uint64_t first, uint64_t scalars,
                uint64_t row_scalars, const Maxima& magnitudes,
                const std::optional<Maxima>& columns, const Counts& count, const Sums& sums) {
    const Statistics task = statistics_task(code, values, first, scalars, row_scalars, magnitudes,
                                            columns, count, sums);
    nb::gil_scoped_release unlocked;
    const FloatEnvironment environment;
    active_kernel().statistics(task);
}

void fused(unsigned code, const Bytes& data, uint64_t start, uint64_t nbytes, uint64_t row_bytes,
           const Rows& out, const Maxima& magnitudes, const std::optional<Maxima>& columns,
           const Counts& count, const Sums& sums) {
    require(code < sizeof kFormats / sizeof kFormats[0], "unknown format");
    const unsigned width = kFormats[code].bits / 8;
    require(width > 0 && width <= 4, "scalars of this format are no words");
    const Residues words = residue_task(data, start, nbytes, row_bytes, width, out);
    const Statistics task = statistics_task(code, data, start / width, nbytes / width,
                                            row_bytes / width, magnitudes, columns, count, sums);
    nb::gil_scoped_release unlocked;
    const FloatEnvironment environment;
    active_kernel().fused(words, task);
}

nb::tuple available_isas() {
    const Kernel* kernels[kMaxKernels];
    const int n = available_kernels(kernels);
    nb::list names;
    for (int i = 0; i < n; ++i) names.append(nb::str(kernels[i]->name));
    return nb::tuple(names);
}

unsigned format_code(const std::string& name) {
    for (unsigned i = 0; i < sizeof kFormats / sizeof kFormats[0]; ++i)
        if (name == kFormats[i].name) return i;
    throw nb::value_error("unknown format");
}

}  // namespace

NB_MODULE(_native, m) {
    m.def("residues", &residues, "data"_a.noconvert(), "start"_a, "nbytes"_a, "row_bytes"_a,
          "word_bytes"_a, "out"_a.noconvert());
    m.def("statistics", &statistics, "code"_a, "values"_a.noconvert(), "first"_a, "scalars"_a,
          "row_scalars"_a, "magnitudes"_a.noconvert(), "columns"_a.noconvert().none(),
          "count"_a.noconvert(), "sums"_a.noconvert());
    m.def("fused", &fused, "code"_a, "data"_a.noconvert(), "start"_a, "nbytes"_a, "row_bytes"_a,
          "out"_a.noconvert(), "magnitudes"_a.noconvert(), "columns"_a.noconvert().none(),
          "count"_a.noconvert(), "sums"_a.noconvert());
    m.def("format_code", &format_code, "name"_a);
    m.def("available_isas", &available_isas);
    m.def("active_isa", [] { return std::string(active_kernel().name); });
    m.def("select_isa", [](const std::string& name) {
        require(select_kernel(name.c_str()), "this processor cannot run that instruction set");
    }, "name"_a);
    bind_dequantise(m);
}
