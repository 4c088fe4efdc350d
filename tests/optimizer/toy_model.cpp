#include "tests/optimizer/toy_model.hpp"

#include <cmath>

#include "core/random.hpp"
#include "core/transfer.hpp"
#include "parallel/shard.hpp"

namespace reprise {

namespace {

using Split = ToyTensor::Split;

constexpr int kHeads = 2;

struct Copies {
  int number = 1;  ///< of this rank's copy of a block
  int count = 1;
};

Copies copies_of(const ToyTensor& tensor, int tp_size, int tp_rank) {
  switch (tensor.split) {
    case Split::kRows:
    case Split::kColumns: return {0, 1};
    case Split::kCopies:
    case Split::kPartialCopies: return {tp_rank, tp_size};
    case Split::kPairsOfHeads: {
      const int sharing = tp_size % kHeads == 0 ? tp_size / kHeads : 1;  // ranks to a head
      return {tp_rank % sharing, sharing};
    }
  }
  return {};
}

Range part_of(std::int64_t total, int count, int index) {
  return even_shard(total, count, index);
}

}  // namespace

const std::vector<ToyTensor>& toy_tensors() {
  static const std::vector<ToyTensor> tensors{
      {"embed", "embedding", 13, 8},
      {"layers.0.norm", "layers.0", 8, 1, Split::kPartialCopies, false},
      {"layers.0.q", "layers.0", 12, 8},
      {"layers.0.k", "layers.0", 4, 8, Split::kPairsOfHeads},
      {"layers.0.o", "layers.0", 8, 12, Split::kColumns},
      {"layers.0.bias", "layers.0", 8, 1, Split::kCopies, false},
      {"layers.1.two_rows", "layers.1", 2, 40},
      {"layers.1.frozen", "layers.1", 5, 8, Split::kRows, true, true},
      {"layers.1.one", "layers.1", 1, 1, Split::kPartialCopies, false},
      {"norm", "norm", 8, 1, Split::kPartialCopies, false},
      {"head", "head", 13, 8},
  };
  return tensors;
}

std::vector<ParameterSpec> toy_specs(int tp_size, int tp_rank) {
  std::vector<ParameterSpec> specs;
  for (const ToyTensor& tensor : toy_tensors()) {
    ParameterSpec spec;
    spec.name = tensor.name;
    spec.layer = tensor.layer;
    spec.global_rows = tensor.rows;
    spec.global_cols = tensor.cols;
    Range rows{0, tensor.rows}, cols{0, tensor.cols};
    if (tensor.split == Split::kRows) rows = part_of(tensor.rows, tp_size, tp_rank);
    if (tensor.split == Split::kColumns) cols = part_of(tensor.cols, tp_size, tp_rank);
    if (tensor.split == Split::kPairsOfHeads) {
      const bool shared = tp_size % kHeads == 0;
      rows = shared ? part_of(tensor.rows, kHeads, tp_rank * kHeads / tp_size) : part_of(tensor.rows, tp_size, tp_rank);
    }
    spec.row_begin = rows.begin;
    spec.row_end = rows.end;
    spec.col_begin = cols.begin;
    spec.col_end = cols.end;
    spec.is_vector = tensor.cols == 1;
    spec.decay = tensor.decay;
    spec.frozen = tensor.frozen;
    const Copies copies = copies_of(tensor, tp_size, tp_rank);
    spec.counted = copies.number == 0;
    spec.sum_over_tp = tensor.split == Split::kPartialCopies || copies_of(tensor, tp_size, 0).count > 1;
    if (tensor.split == Split::kCopies) spec.sum_over_tp = false;
    specs.push_back(spec);
  }
  return specs;
}

float toy_weight(std::size_t tensor, std::int64_t element) {
  return static_cast<float>(random_normal(1, tensor, static_cast<std::uint64_t>(element)));
}

namespace {

constexpr int kSteps = 8;

// A common direction whose sign turns now and then, and noise: angles between gradient and momentum from sharp to
// obtuse, as training has them. One coordinate in seven stays untouched, like a row of the head.
float draw_gradient(std::size_t tensor, std::int64_t element, int step, int part, bool exact) {
  if (element % 7 == 3) return 0.0f;
  const auto e = static_cast<std::uint64_t>(element);
  const auto moment = static_cast<std::uint64_t>(step * kParts + part);
  if (exact) return static_cast<float>(random_bits(2, tensor * 1000 + e, moment) % 17) - 8.0f;
  static constexpr double kSigns[] = {1.0, 0.9, -0.4, 0.1, -1.0, 0.6, 1.0};
  const double common = kSigns[(static_cast<std::size_t>(step) + tensor) % 7] * random_normal(3, tensor, e);
  return static_cast<float>(common + random_normal(4, tensor * 1000 + e, moment));
}

/// All gradients, drawn once: [exact][tensor][element][step][part].
class GradientTable {
 public:
  GradientTable() {
    for (const bool exact : {false, true}) {
      for (std::size_t t = 0; t < toy_tensors().size(); ++t) {
        auto& values = values_[exact ? 1 : 0].emplace_back();
        for (std::int64_t e = 0; e < toy_tensors()[t].size(); ++e) {
          for (int step = 0; step < kSteps; ++step) {
            for (int part = 0; part < kParts; ++part) values.push_back(draw_gradient(t, e, step, part, exact));
          }
        }
      }
    }
  }
  [[nodiscard]] float at(std::size_t tensor, std::int64_t element, int step, int part, bool exact) const {
    const auto place = (element * kSteps + step % kSteps) * kParts + part;
    return values_[exact ? 1 : 0][tensor][static_cast<std::size_t>(place)];
  }

 private:
  std::vector<std::vector<float>> values_[2];
};

}  // namespace

float toy_gradient(std::size_t tensor, std::int64_t element, int step, int part, bool exact) {
  static const GradientTable table;
  return table.at(tensor, element, step, part, exact);
}

template <class T>
void add_toy_gradients(const Context& context, ParameterSet<T>& parameters, int step, int first, int last, bool exact) {
  for (std::int64_t p = 0; p < parameters.count(); ++p) {
    const auto tensor = static_cast<std::size_t>(p);
    const ParameterSpec& spec = parameters.spec(p);
    const Copies copies = copies_of(toy_tensors()[tensor], context.groups.tp_size(), context.groups.tp_rank());
    // A copy with partial gradients has every count-th part; integers stay integers that way.
    const auto gradient = parameters.gradient(p).flat();
    std::vector<float> sums = to_host(context.stream, gradient);
    for (std::int64_t i = 0; i < gradient.size; ++i) {
      for (int part = first; part < last; ++part) {
        if (spec.sum_over_tp && part % copies.count != copies.number) continue;
        sums[static_cast<std::size_t>(i)] += toy_gradient(tensor, global_element(spec, i), step, part, exact);
      }
    }
    copy_to_device<float>(context.stream, sums, gradient);
  }
}

template <class T>
void set_toy_weights(const Stream& stream, ParameterSet<T>& parameters) {
  for (std::int64_t p = 0; p < parameters.count(); ++p) {
    std::vector<T> weights;
    for (std::int64_t i = 0; i < parameters.spec(p).size(); ++i) {
      weights.push_back(T(toy_weight(static_cast<std::size_t>(p), global_element(parameters.spec(p), i))));
    }
    copy_to_device<T>(stream, weights, parameters.value(p).flat());
  }
}

template void add_toy_gradients(const Context&, ParameterSet<float>&, int, int, int, bool);
template void add_toy_gradients(const Context&, ParameterSet<BFloat16>&, int, int, int, bool);
template void set_toy_weights(const Stream&, ParameterSet<float>&);
template void set_toy_weights(const Stream&, ParameterSet<BFloat16>&);

}  // namespace reprise
