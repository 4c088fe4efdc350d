#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "launcher/checkpoint.hpp"
#include "tests/support/device.hpp"

namespace reprise {

/// How a fake optimizer cuts its state.
struct StateLayout {
  int tensor = 1, data = 1;
  [[nodiscard]] int ranks() const { return tensor * data; }
};

/// Parameters and optimizer state of one rank of a small model, cut as ZeRO cuts: the blocks of a rank lie one behind
/// the other in a flat buffer, which data-parallel ranks share evenly, so pieces begin and end in the middle of rows.
/// Every element's bits (any bits, NaN included) follow from its place in the global tensor. On the device under test.
class FakeState {
 public:
  FakeState(const StateLayout& layout, int tp_rank, int dp_rank, bool keep_copies) {
    declare("embedding", 11, 6, kByRow, tp_rank, layout.tensor);
    declare("wide", 4, 9000, kByColumn, tp_rank, layout.tensor);
    declare("norm", 7, 1, kReplicated, tp_rank, layout.tensor);
    declare("down", 50, 13, kByColumn, tp_rank, layout.tensor);
    declare("frozen", 3, 3, kReplicated, tp_rank, layout.tensor);
    specs_.back().frozen = true;
    declare("up", 64, 40, kByRow, tp_rank, layout.tensor);
    declare("short", 2, 5, kByRow, tp_rank, layout.tensor);  // empty on rank 2 of 3

    std::int64_t size = 0;
    for (const ParameterSpec& spec : specs_) size += spec.frozen ? 0 : spec.size();
    for (auto& state : states_) state = Buffer<float>(test_stream(), size, "state");
    const Range shard = even_shard(size, layout.data, dp_rank);
    std::int64_t begin = 0;
    for (std::size_t p = 0; p < specs_.size(); ++p) {
      if (specs_[p].frozen) continue;
      const std::int64_t end = begin + specs_[p].size();
      const Range mine = intersect({begin, end}, shard);
      const bool counted = specs_[p].counted;
      if (counted) owned_.push_back(piece(p, begin, mine));
      held_.push_back(piece(p, begin, keep_copies ? Range{begin, end} : mine));
      begin = end;
    }
  }

  [[nodiscard]] const std::vector<ParameterSpec>& specs() const { return specs_; }
  [[nodiscard]] std::vector<ParameterSpec>& specs() { return specs_; }
  [[nodiscard]] const std::vector<OwnedPiece>& owned() const { return owned_; }
  [[nodiscard]] const std::vector<OwnedPiece>& held() const { return held_; }

  void fill(std::uint64_t seed) {
    Host host = on_this_host();
    for (const OwnedPiece& part : held_) {
      for_each(part, [&](std::size_t kind, std::size_t i, std::uint64_t place) {
        host[kind][i] = std::bit_cast<float>(bits(seed, place));
      });
    }
    for (std::size_t k = 0; k < host.size(); ++k) copy_to_device<float>(test_stream(), host[k], states_[k].view());
  }
  /// Elements of the held pieces that do not have the bits which `fill(seed)` gives.
  [[nodiscard]] std::int64_t differences(std::uint64_t seed) const {
    std::int64_t count = 0;
    const Host host = on_this_host();
    for (const OwnedPiece& part : held_) {
      for_each(part, [&](std::size_t kind, std::size_t i, std::uint64_t place) {
        count += std::bit_cast<std::uint32_t>(host[kind][i]) != bits(seed, place) ? 1 : 0;
      });
    }
    return count;
  }

 private:
  enum Cut { kByRow, kByColumn, kReplicated };

  void declare(const char* name, std::int64_t rows, std::int64_t cols, Cut cut, int tp_rank, int tensor) {
    ParameterSpec spec;
    spec.name = name;
    spec.global_rows = rows;
    spec.global_cols = cols;
    const Range mine_rows = cut == kByRow ? even_shard(rows, tensor, tp_rank) : Range{0, rows};
    const Range mine_cols = cut == kByColumn ? even_shard(cols, tensor, tp_rank) : Range{0, cols};
    spec.row_begin = mine_rows.begin;
    spec.row_end = mine_rows.end;
    spec.col_begin = mine_cols.begin;
    spec.col_end = mine_cols.end;
    spec.counted = cut != kReplicated || tp_rank == 0;
    specs_.push_back(spec);
  }

  OwnedPiece piece(std::size_t parameter, std::int64_t begin, Range flat) {
    const auto view = [&](Buffer<float>& state) { return state.view().slice(flat.begin, flat.size()); };
    return {static_cast<std::int64_t>(parameter),
            {flat.begin - begin, flat.end - begin},
            view(states_[0]),
            view(states_[1]),
            view(states_[2])};
  }

  using Host = std::array<std::vector<float>, 3>;
  [[nodiscard]] Host on_this_host() const { return {to_host(states_[0]), to_host(states_[1]), to_host(states_[2])}; }

  template <class Body>
  void for_each(const OwnedPiece& part, const Body& body) const {
    const ParameterSpec& spec = specs_[static_cast<std::size_t>(part.parameter)];
    const auto begin = part.master.data - states_[0].view().data;
    for (std::size_t kind = 0; kind < 3; ++kind) {
      for (std::int64_t i = 0; i < part.local.size(); ++i) {
        const std::int64_t element = part.local.begin + i;
        const std::int64_t row = spec.row_begin + element / spec.cols(), col = spec.col_begin + element % spec.cols();
        const std::int64_t place = (part.parameter * 3 + static_cast<std::int64_t>(kind)) * 1000000;
        body(kind, static_cast<std::size_t>(begin + i),
             static_cast<std::uint64_t>(place + row * spec.global_cols + col));
      }
    }
  }

  static std::uint32_t bits(std::uint64_t seed, std::uint64_t place) {
    std::uint64_t x = (seed * 1000003 + place) * 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93u;
    return static_cast<std::uint32_t>(x >> 32);
  }

  std::vector<ParameterSpec> specs_;
  std::vector<OwnedPiece> owned_, held_;
  std::array<Buffer<float>, 3> states_;  // master, exp_avg, exp_avg_sq
};

}  // namespace reprise
