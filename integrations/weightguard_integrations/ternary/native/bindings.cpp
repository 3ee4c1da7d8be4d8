// The Python module weightguard_integrations.ternary._native. Sizes of arrays are checked here;
// activations and outputs come as addresses, which ternary/operands.py has checked, since an array
// argument of torch costs more than a small product. The lock is released while there is work.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>

#include "dispatch.hpp"
#include "pack.hpp"
#include "pool.hpp"
#include "product.hpp"

namespace nb = nanobind;
using namespace nb::literals;
using namespace weightguard::ternary;

namespace {

using Weights = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using WeightsOut = nb::ndarray<int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Packed = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using PackedOut = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Scales = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using DrillRow = std::tuple<int, int64_t, int64_t, uint32_t>;

void require(bool condition, const char* message) {
    if (!condition) throw nb::value_error(message);
}

Layout layout_of(bool ternary, int64_t rows, int64_t columns, int digits) {
    const Coding coding = ternary ? Coding::ternary : Coding::bytes;
    require(rows >= 1 && rows <= traits(coding).most_rows, "rows out of range");
    require(columns >= 1 && columns <= traits(coding).most_columns, "columns out of range");
    require(digits >= 1 && digits <= 40, "digits out of range");
    return {coding, rows, columns, digits};
}

// Returns (digits, bytes) that pack() will need for these weights.
std::tuple<int, int64_t> measure(bool ternary, const Weights& weights) {
    const auto rows = static_cast<int64_t>(weights.shape(0));
    const auto columns = static_cast<int64_t>(weights.shape(1));
    const Layout layout = layout_of(ternary, rows, columns, 1);
    nb::gil_scoped_release unlocked;
    const auto check = check_vector(weights.data(), rows, columns);
    const int digits = digits_needed(check, traits(layout.coding).radix);
    return {digits, Layout{layout.coding, rows, columns, digits}.bytes()};
}

void pack_weights(bool ternary, const Weights& weights, int digits, const PackedOut& out) {
    const auto rows = static_cast<int64_t>(weights.shape(0));
    const auto columns = static_cast<int64_t>(weights.shape(1));
    const Layout layout = layout_of(ternary, rows, columns, digits);
    require(static_cast<int64_t>(out.shape(0)) == layout.bytes(), "packed: wrong size");
    require(first_invalid(layout.coding, weights.data(), rows * columns) < 0,
            "weights outside the alphabet");
    nb::gil_scoped_release unlocked;
    const auto check = check_vector(weights.data(), rows, columns);
    if (digits_needed(check, traits(layout.coding).radix) > digits) {
        nb::gil_scoped_acquire locked;
        throw nb::value_error("too few digits for these weights");
    }
    pack(layout, weights.data(), check, out.data());
}

int64_t invalid(bool ternary, const Weights& weights) {
    nb::gil_scoped_release unlocked;
    return first_invalid(ternary ? Coding::ternary : Coding::bytes, weights.data(),
                         static_cast<int64_t>(weights.shape(0) * weights.shape(1)));
}

// A packed matrix and its scales, which it keeps alive.
class PackedMatrix {
  public:
    PackedMatrix(bool ternary, int64_t rows, int64_t columns, int digits, Packed packed,
                 Scales scales, uint64_t scale_check)
        : packed_(std::move(packed)), scales_(std::move(scales)),
          matrix_{layout_of(ternary, rows, columns, digits), packed_.data(), scales_.data(),
                  scales_.shape(0) != 1, scale_check} {
        require(static_cast<int64_t>(packed_.shape(0)) == matrix_.layout.bytes(),
                "packed: wrong size");
        require(scales_.shape(0) == 1 || static_cast<int64_t>(scales_.shape(0)) == rows,
                "scales: one, or one a row");
    }

    nb::object multiply(uintptr_t x, int x_number, int64_t tokens, uintptr_t out, int out_number,
                        bool verify, const std::vector<DrillRow>& drills) const {
        require(tokens >= 0 && tokens <= (int64_t{1} << 31), "tokens out of range");
        require(x_number >= 0 && x_number <= 2 && out_number >= 0 && out_number <= 2,
                "unknown number format");
        Call call{&matrix_, reinterpret_cast<const void*>(x), static_cast<Number>(x_number), tokens,
                  reinterpret_cast<void*>(out), static_cast<Number>(out_number), verify,
                  thread_count(), {}};
        for (const auto& [site, token, index, mask] : drills) call.drills.push_back(
            checked({static_cast<Site>(site), token, index, mask}, tokens));
        std::vector<uint8_t> alarms;
        {
            nb::gil_scoped_release unlocked;
            alarms = weightguard::ternary::multiply(call, active_kernel());
        }
        if (alarms.empty()) return nb::none();
        return nb::bytes(reinterpret_cast<const char*>(alarms.data()), alarms.size());
    }

    void unpack(const WeightsOut& out) const {
        require(static_cast<int64_t>(out.shape(0)) == matrix_.layout.rows &&
                    static_cast<int64_t>(out.shape(1)) == matrix_.layout.columns,
                "weights: wrong shape");
        nb::gil_scoped_release unlocked;
        weightguard::ternary::unpack(matrix_.layout, matrix_.packed, out.data());
    }

    void check_vector_into(const Words& out) const {
        require(static_cast<int64_t>(out.shape(0)) == matrix_.layout.columns, "wrong length");
        const auto values = stored_check_vector(matrix_.layout, matrix_.packed);
        std::copy(values.begin(), values.end(), out.data());
    }

  private:
    Drill checked(Drill drill, int64_t tokens) const {
        const Layout& layout = matrix_.layout;
        const int64_t most = drill.site == Site::activation    ? layout.padded_columns()
                             : drill.site == Site::accumulator ? layout.all_groups() * kGroupRows
                                                               : 1;
        const int site = static_cast<int>(drill.site);
        require(site >= 0 && site <= 2, "drill: unknown site");
        require(drill.token >= 0 && drill.token < tokens, "drill: no such token");
        require(drill.index >= 0 && drill.index < most, "drill: no such index");
        return drill;
    }

    Packed packed_;
    Scales scales_;
    Matrix matrix_;
};

nb::tuple isas() {
    const Kernel* kernels[kMostKernels];
    const int n = available_kernels(kernels);
    nb::list names;
    for (int i = 0; i < n; ++i) names.append(nb::str(kernels[i]->name));
    return nb::tuple(names);
}

}  // namespace

NB_MODULE(_native, m) {
    m.def("measure", &measure, "ternary"_a, "weights"_a.noconvert());
    m.def("pack", &pack_weights, "ternary"_a, "weights"_a.noconvert(), "digits"_a,
          "out"_a.noconvert());
    m.def("first_invalid", &invalid, "ternary"_a, "weights"_a.noconvert());
    m.def("scale_check", [](const Scales& scales) {
        return scale_check(scales.data(), static_cast<int64_t>(scales.shape(0)));
    }, "scales"_a.noconvert());
    nb::class_<PackedMatrix>(m, "PackedMatrix")
        .def(nb::init<bool, int64_t, int64_t, int, Packed, Scales, uint64_t>(), "ternary"_a,
             "rows"_a, "columns"_a, "digits"_a, "packed"_a.noconvert(), "scales"_a.noconvert(),
             "scale_check"_a)
        .def("multiply", &PackedMatrix::multiply, "x"_a, "x_number"_a, "tokens"_a, "out"_a,
             "out_number"_a, "verify"_a, "drills"_a)
        .def("unpack", &PackedMatrix::unpack, "out"_a.noconvert())
        .def("check_vector", &PackedMatrix::check_vector_into, "out"_a.noconvert());
    m.def("available_isas", &isas);
    m.def("active_isa", [] { return std::string(active_kernel().name); });
    m.def("select_isa", [](const std::string& name) {
        require(select_kernel(name.c_str()), "this processor cannot run that instruction set");
    }, "name"_a);
    m.def("thread_count", &thread_count);
    m.def("set_thread_count", [](int threads) {
        require(threads >= 1 && threads <= kMostThreads, "threads must be 1 to 256");
        set_thread_count(threads);
    }, "threads"_a);
}
