#include "product.hpp"

#include <algorithm>
#include <cstring>
#include <memory>

#include "pool.hpp"

namespace weightguard::ternary {

namespace {

constexpr int64_t kCacheBytes = 384 << 10;   // of activations that stay near while panels pass
constexpr int64_t kClaimBytes = 64 << 10;    // of weights that a thread claims at least
constexpr int64_t kShareBytes = 128 << 10;   // below which a second thread costs more than it does

class Product {
  public:
    Product(const Call& call, const Kernel& kernel);
    std::vector<uint8_t> run();

  private:
    int64_t block_of(int64_t token) const { return token / kTokens; }
    int tokens_of(int64_t block) const {
        return static_cast<int>(std::min<int64_t>(kTokens, call_.tokens - block * kTokens));
    }
    int8_t* activations(int64_t block) const {
        return x_ + block * kTokens * layout_.padded_columns();
    }
    size_t block_bytes(int64_t block) const {
        return static_cast<size_t>(tokens_of(block) * layout_.padded_columns());
    }

    // How much of weighted_ one worker has.
    size_t share() const { return static_cast<size_t>(call_.tokens) * kWeighedLanes + 1; }

    void allocate();
    void quantise(int64_t block);
    void panels(int64_t item, int worker);
    void panel(int64_t panel, int64_t block, int worker, bool first_visit);
    void keep_check_rows(int64_t panel, int64_t block, const int32_t (*sums)[kPanelRows],
                         int groups);
    std::vector<uint8_t> check();
    uint8_t alarms(int64_t token, uint8_t common) const;
    int64_t check_value(int64_t token, int row) const;
    void drill(Site site);
    void drill_accumulators(int64_t panel, int64_t block, int32_t (*sums)[kPanelRows]) const;

    const Call& call_;
    const Kernel& kernel_;
    const Matrix& matrix_;
    const Layout& layout_;
    int offset_, threads_;
    int64_t blocks_, panels_, chunk_, items_;
    // All in one piece of memory, as a small product is over sooner than several allocations.
    std::unique_ptr<uint8_t[]> memory_;
    int8_t* x_;             // [block of tokens][four columns][token of the block]
    TokenState* states_;    // [token]
    int32_t* kept_sums_;    // of the quantiser, for the check
    Seal* seals_;           // [block]
    int32_t* check_sums_;   // [token][check row]
    uint64_t* weighted_;    // of a worker: [token][lane], then one of the scales
};

Product::Product(const Call& call, const Kernel& kernel)
    : call_(call), kernel_(kernel), matrix_(*call.matrix), layout_(call.matrix->layout) {
    const bool ternary = layout_.coding == Coding::ternary;
    offset_ = ternary ? traits(Coding::ternary).offset : kernel.byte_offset;
    blocks_ = (call.tokens + kTokens - 1) / kTokens;
    panels_ = call.verify ? layout_.panels() : (layout_.groups() + 1) / 2;
    const int64_t panel_bytes = 2 * layout_.group_bytes();
    const int64_t work = panels_ * panel_bytes * ((call.tokens + 3) / 4);
    threads_ = work < kShareBytes ? 1 : std::max(1, call.threads);
    chunk_ = panels_;
    if (threads_ > 1) {
        const int64_t least = call.tokens < kTokens ? kClaimBytes / panel_bytes : 1;
        chunk_ = std::min(panels_, std::max<int64_t>({1, least, panels_ / (threads_ * 6)}));
    }
    items_ = (panels_ + chunk_ - 1) / chunk_;
    allocate();
}

void Product::allocate() {
    const auto tokens = static_cast<size_t>(call_.tokens), blocks = static_cast<size_t>(blocks_);
    const auto checks = static_cast<size_t>(call_.verify);
    size_t used = 0;
    const auto reserve = [&](size_t bytes) {
        const size_t at = used;
        used += (bytes + 63) / 64 * 64;
        return at;
    };
    const auto workers = static_cast<size_t>(threads_);
    const size_t x = reserve(tokens * static_cast<size_t>(layout_.padded_columns()));
    const size_t states = reserve(tokens * sizeof(TokenState));
    const size_t sums = reserve(checks * tokens * sizeof(int32_t));
    const size_t seals = reserve(checks * blocks * sizeof(Seal));
    const size_t rows = reserve(checks * tokens * sizeof(int32_t) *
                                static_cast<size_t>(layout_.check_groups() * kGroupRows));
    const size_t weighted = reserve(checks * workers * share() * sizeof(uint64_t));
    memory_.reset(new uint8_t[used + 63]);
    uint8_t* base = memory_.get() + (-reinterpret_cast<uintptr_t>(memory_.get()) & 63u);
    x_ = reinterpret_cast<int8_t*>(base + x);
    states_ = reinterpret_cast<TokenState*>(base + states);
    kept_sums_ = reinterpret_cast<int32_t*>(base + sums);
    seals_ = reinterpret_cast<Seal*>(base + seals);
    check_sums_ = reinterpret_cast<int32_t*>(base + rows);
    weighted_ = reinterpret_cast<uint64_t*>(base + weighted);
    std::memset(base + weighted, 0, checks * workers * share() * sizeof(uint64_t));
}

void Product::quantise(int64_t block) {
    const int64_t number_bytes = call_.x_number == Number::f32 ? 4 : 2;
    for (int t = 0; t < tokens_of(block); ++t) {
        const int64_t token = block * kTokens + t;
        const auto* x = static_cast<const uint8_t*>(call_.x) + token * layout_.columns * number_bytes;
        kernel_.quantise({x, call_.x_number, layout_.columns, layout_.padded_columns(),
                          activations(block) + 4 * t, tokens_of(block),
                          &states_[static_cast<size_t>(token)]});
        if (call_.verify)
            kept_sums_[static_cast<size_t>(token)] = states_[static_cast<size_t>(token)].sum;
    }
    if (call_.verify)
        kernel_.seal(activations(block), block_bytes(block), seals_[static_cast<size_t>(block)]);
}

// The chunk's panels, for as many tokens at a time as stay in the cache.
void Product::panels(int64_t item, int worker) {
    const int64_t first = item * chunk_, last = std::min(panels_, first + chunk_);
    const int64_t block = kTokens * layout_.padded_columns();
    const int64_t together = std::max<int64_t>(1, kCacheBytes / block);
    for (int64_t start = 0; start < blocks_; start += together)
        for (int64_t p = first; p < last; ++p)
            for (int64_t b = start; b < std::min(blocks_, start + together); ++b)
                panel(p, b, worker, b == 0);
}

void Product::panel(int64_t panel, int64_t block, int worker, bool first_visit) {
    const int64_t group = 2 * panel;
    const int weight_groups = static_cast<int>(std::min<int64_t>(
        2, std::max<int64_t>(0, layout_.groups() - group)));
    const int groups = call_.verify ? (layout_.paired(panel) ? 2 : 1) : weight_groups;
    alignas(64) int32_t sums[kTokens][kPanelRows];
    const Pass pass{matrix_.packed + layout_.group_start(group),
                    static_cast<size_t>(layout_.tile_stride(group)),
                    static_cast<size_t>(layout_.tiles()),
                    groups,
                    activations(block),
                    tokens_of(block),
                    sums};
    (layout_.coding == Coding::ternary ? kernel_.ternary : kernel_.bytes)(pass);
    if (!call_.drills.empty()) drill_accumulators(panel, block, sums);
    if (call_.verify && groups > weight_groups) keep_check_rows(panel, block, sums, groups);
    if (!weight_groups) return;
    const auto token = static_cast<size_t>(block * kTokens);
    uint64_t* mine =
        call_.verify ? weighted_ + static_cast<size_t>(worker) * share() : nullptr;
    const int64_t number_bytes = call_.out_number == Number::f32 ? 4 : 2;
    const bool with_scales = mine && first_visit && matrix_.scale_each_row;
    kernel_.finish({sums, tokens_of(block), states_ + token, offset_,
                    weight_groups * kGroupRows, group * kGroupRows, layout_.rows, matrix_.scales,
                    matrix_.scale_each_row,
                    static_cast<uint8_t*>(call_.out) +
                        block * kTokens * layout_.rows * number_bytes,
                    call_.out_number, mine ? mine + token * kWeighedLanes : nullptr,
                    with_scales ? mine + share() - 1 : nullptr});
}

void Product::keep_check_rows(int64_t panel, int64_t block, const int32_t (*sums)[kPanelRows],
                              int groups) {
    const int64_t rows = layout_.check_groups() * kGroupRows;
    for (int g = 0; g < groups; ++g) {
        const int64_t check_group = 2 * panel + g - layout_.groups();
        if (check_group < 0) continue;
        for (int t = 0; t < tokens_of(block); ++t)
            std::memcpy(check_sums_ + (block * kTokens + t) * rows + check_group * kGroupRows,
                        sums[t] + g * kGroupRows, sizeof(int32_t) * kGroupRows);
    }
}

int64_t Product::check_value(int64_t token, int row) const {
    const int64_t rows = layout_.check_groups() * kGroupRows;
    return static_cast<int64_t>(check_sums_[static_cast<size_t>(token * rows + row)]) -
           static_cast<int64_t>(offset_) * kept_sums_[static_cast<size_t>(token)];
}

uint8_t Product::alarms(int64_t token, uint8_t common) const {
    const TokenState& state = states_[static_cast<size_t>(token)];
    const int32_t sum = kept_sums_[static_cast<size_t>(token)];
    uint64_t observed = 0, expected = 0, place = 1;
    for (int worker = 0; worker < threads_; ++worker) {
        const uint64_t* lanes = weighted_ + static_cast<size_t>(worker) * share() +
                                static_cast<size_t>(token) * kWeighedLanes;
        for (int l = 0; l < kWeighedLanes; ++l) observed += lanes[l];
    }
    for (int digit = 0; digit < layout_.digits; ++digit) {
        expected += place * static_cast<uint64_t>(check_value(token, 1 + digit));
        place *= static_cast<uint64_t>(traits(layout_.coding).radix);
    }
    uint32_t scale_bits;
    std::memcpy(&scale_bits, &state.scale, sizeof scale_bits);
    uint8_t alarm = common;
    if (observed != expected) alarm |= kWeightsAlarm;
    if (check_value(token, 0) != sum) alarm |= kActivationsAlarm;
    if (scale_bits != state.scale_copy || state.sum != sum) alarm |= kTokenScaleAlarm;
    return alarm;
}

std::vector<uint8_t> Product::check() {
    const auto tokens = static_cast<size_t>(call_.tokens);
    uint64_t scales = 0;
    if (matrix_.scale_each_row)
        for (int w = 0; w < threads_; ++w)
            scales += weighted_[static_cast<size_t>(w + 1) * share() - 1];
    else {
        uint32_t bits;
        std::memcpy(&bits, matrix_.scales, sizeof bits);
        scales = static_cast<uint64_t>(static_cast<int64_t>(row_weight(0))) * bits;
    }
    const uint8_t common = scales == matrix_.scale_check ? 0 : kScalesAlarm;
    std::vector<uint8_t> found;
    for (int64_t block = 0; block < blocks_; ++block) {
        Seal now;
        kernel_.seal(activations(block), block_bytes(block), now);
        const bool sealed = !std::memcmp(&now, &seals_[static_cast<size_t>(block)], sizeof now);
        for (int t = 0; t < tokens_of(block); ++t) {
            const int64_t token = block * kTokens + t;
            const uint8_t alarm =
                alarms(token, static_cast<uint8_t>(common | (sealed ? 0 : kSealAlarm)));
            if (alarm && found.empty()) found.resize(tokens);
            if (alarm) found[static_cast<size_t>(token)] = alarm;
        }
    }
    return found;
}

void Product::drill(Site site) {
    for (const Drill& d : call_.drills) {
        if (d.site != site) continue;
        const int64_t block = block_of(d.token);
        if (site == Site::activation) {
            const int64_t t = d.token % kTokens;
            activations(block)[(d.index / 4 * tokens_of(block) + t) * 4 + d.index % 4] ^=
                static_cast<int8_t>(d.mask);
        } else {
            float& scale = states_[static_cast<size_t>(d.token)].scale;
            uint32_t bits;
            std::memcpy(&bits, &scale, sizeof bits);
            bits ^= d.mask;
            std::memcpy(&scale, &bits, sizeof bits);
        }
    }
}

void Product::drill_accumulators(int64_t panel, int64_t block, int32_t (*sums)[kPanelRows]) const {
    for (const Drill& d : call_.drills) {
        const bool here = d.site == Site::accumulator && d.index / kPanelRows == panel &&
                          block_of(d.token) == block;
        if (!here) continue;
        int32_t& sum = sums[d.token % kTokens][d.index % kPanelRows];
        sum = static_cast<int32_t>(static_cast<uint32_t>(sum) ^ d.mask);
    }
}

std::vector<uint8_t> Product::run() {
    run_items(blocks_, call_.tokens < kTokens ? 1 : threads_,
              [](void* self, int64_t block, int) { static_cast<Product*>(self)->quantise(block); },
              this);
    if (!call_.drills.empty()) {
        drill(Site::activation);
        drill(Site::token_scale);
    }
    run_items(items_, threads_,
              [](void* self, int64_t item, int worker) {
                  static_cast<Product*>(self)->panels(item, worker);
              },
              this);
    return call_.verify ? check() : std::vector<uint8_t>();
}

}  // namespace

std::vector<uint8_t> multiply(const Call& call, const Kernel& kernel) {
    if (call.tokens == 0) return {};
    return Product(call, kernel).run();
}

}  // namespace weightguard::ternary
