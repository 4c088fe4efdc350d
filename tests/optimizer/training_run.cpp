#include "tests/optimizer/training_run.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "core/error.hpp"
#include "core/thread_pool.hpp"
#include "core/transfer.hpp"
#include "tests/optimizer/toy_model.hpp"
#include "tests/support/device.hpp"
#include "tests/support/device_ranks.hpp"

namespace reprise {

namespace {

constexpr double kLossOfPart = 3.0;

Stream host_stream() {
  return Stream(CpuStream{});
}

// Elements of the parameters here whose bits are not those of the owner's master weight, over all ranks.
template <class T>
std::int64_t count_wrong_values(const Context& context, ParameterSet<T>& parameters, const WholeState& state) {
  std::int64_t wrong = 0;
  for (std::int64_t p = 0; p < parameters.count(); ++p) {
    if (parameters.spec(p).frozen) continue;
    const std::vector<T> value = to_host(context.stream, parameters.value(p).flat());
    for (std::int64_t i = 0; i < parameters.spec(p).size(); ++i) {
      const auto element = static_cast<std::size_t>(global_element(parameters.spec(p), i));
      const T expected(static_cast<float>(state.weight[static_cast<std::size_t>(p)][element]));
      wrong += value[static_cast<std::size_t>(i)] == expected ? 0 : 1;
    }
  }
  context.groups.world->all_reduce(host_stream(), VectorView<std::int64_t>(&wrong, 1));
  return wrong;
}

void sum_over_world(const Context& context, std::vector<std::vector<double>>& tensors) {
  for (auto& tensor : tensors) context.groups.world->all_reduce(host_stream(), VectorView<double>(tensor));
}

}  // namespace

template <class T>
ToyTrainer<T>::ToyTrainer(Communicator& world, const RunSettings& settings)
    : settings_(settings),
      groups_(ProcessGroups::make(world, settings.tensor_size)),
      pool_(settings.threads),
      stream_(test_stream().is_cpu() ? Stream(CpuStream{&pool_}) : test_stream()),
      arena_(stream_),
      context_{stream_, groups_, arena_} {
  for (const ParameterSpec& spec : toy_specs(groups_.tp_size(), groups_.tp_rank())) parameters_.add(spec);
  parameters_.allocate(stream_, settings.bucket_elements, groups_.dp_size());
  set_toy_weights(stream_, parameters_);
  optimizer_ = make_optimizer(context_, settings.options, parameters_);
}

template <class T>
void ToyTrainer<T>::add_gradients(int step) {
  const Range mine = even_shard(kParts, groups_.dp_size(), groups_.dp_rank());
  for (int micro = 0; micro < settings_.micro_batches; ++micro) {
    const Range parts = even_shard(mine.size(), settings_.micro_batches, micro);
    add_toy_gradients(context_, parameters_, step, static_cast<int>(mine.begin + parts.begin),
                      static_cast<int>(mine.begin + parts.end), settings_.exact);
    const bool last = micro + 1 == settings_.micro_batches;
    const std::vector<Bucket>& buckets = parameters_.layout().buckets;
    for (std::size_t b = buckets.size(); settings_.ahead && last && b-- > 1;) {  // the first is left over
      if (!buckets[b].sum_over_tp) optimizer_->reduce_ahead(context_, static_cast<std::int64_t>(b));
    }
    optimizer_->reduce_gradients(context_, last);
  }
}

template <class T>
StepSums ToyTrainer<T>::sums() const {
  StepSums sums;
  if (groups_.tp_rank() != 0) return sums;
  const auto parts = static_cast<double>(even_shard(kParts, groups_.dp_size(), groups_.dp_rank()).size());
  sums.weight = kPartWeight * parts;
  sums.weighted_loss = kLossOfPart * parts;
  sums.tokens = 10.0 * parts;
  return sums;
}

template <class T>
StepResult ToyTrainer<T>::run_step(int step) {
  add_gradients(step);
  const StepResult result = optimizer_->step(context_, kRunRate, sums());
  for (const float g : to_host(stream_, parameters_.gradients()))
    EXPECT_EQ(g, 0.0f) << "gradients are zero after a step";
  return result;
}

template <class T>
WholeState ToyTrainer<T>::gather() {
  WholeState state;
  for (const ToyTensor& tensor : toy_tensors()) {
    const std::vector<double> zeros(static_cast<std::size_t>(tensor.size()), 0.0);
    for (auto* whole : {&state.weight, &state.exp_avg, &state.exp_avg_sq, &state.coverage}) whole->push_back(zeros);
  }
  for (const OwnedPiece& piece : optimizer_->owned_pieces()) {
    const auto p = static_cast<std::size_t>(piece.parameter);
    const std::vector<float> master = to_host(stream_, piece.master), exp_avg = to_host(stream_, piece.exp_avg);
    const std::vector<float> exp_avg_sq = to_host(stream_, piece.exp_avg_sq);
    for (std::int64_t i = 0; i < piece.local.size(); ++i) {
      const auto place = static_cast<std::size_t>(i);
      const auto element =
          static_cast<std::size_t>(global_element(parameters_.spec(piece.parameter), piece.local.begin + i));
      state.weight[p][element] += static_cast<double>(master[place]);
      state.exp_avg[p][element] += static_cast<double>(exp_avg[place]);
      state.exp_avg_sq[p][element] += static_cast<double>(exp_avg_sq[place]);
      state.coverage[p][element] += 1.0;
    }
  }
  for (auto* whole : {&state.weight, &state.exp_avg, &state.exp_avg_sq, &state.coverage}) {
    sum_over_world(context_, *whole);
  }
  state.wrong_values = count_wrong_values(context_, parameters_, state);
  return state;
}

template <class T>
WholeState run_training(Communicator& world, const RunSettings& settings) {
  ToyTrainer<T> trainer(world, settings);
  std::vector<StepResult> results;
  for (int step = 0; step < settings.steps; ++step) results.push_back(trainer.run_step(step));
  EXPECT_EQ(trainer.optimizer().steps_taken(), settings.steps);
  WholeState state = trainer.gather();
  state.results = std::move(results);
  return state;
}

template <class T>
WholeState run_training_on_threads(int ranks, const RunSettings& settings) {
  WholeState state;
  run_device_ranks(ranks, [&](Communicator& world) {
    WholeState mine = run_training<T>(world, settings);
    if (world.rank() == 0) state = std::move(mine);
  });
  return state;
}

ReferenceRun run_reference(const RunSettings& settings, bool bfloat16) {
  std::vector<ReferenceOptimizer::Tensor> tensors;
  for (std::size_t t = 0; t < toy_tensors().size(); ++t) {
    const ToyTensor& toy = toy_tensors()[t];
    const std::vector<double> zeros(static_cast<std::size_t>(toy.size()), 0.0);
    ReferenceOptimizer::Tensor tensor{toy.name, toy.layer, toy.decay, toy.frozen, zeros, zeros, zeros};
    for (std::int64_t i = 0; i < toy.size(); ++i) {
      const float weight = toy_weight(t, i);
      tensor.weight[static_cast<std::size_t>(i)] = bfloat16 ? static_cast<float>(BFloat16(weight)) : weight;
    }
    tensors.push_back(std::move(tensor));
  }
  ReferenceRun run{ReferenceOptimizer(settings.options, std::move(tensors)), {}};
  for (int step = 0; step < settings.steps; ++step) {
    std::vector<std::vector<double>> gradients;
    for (std::size_t t = 0; t < toy_tensors().size(); ++t) {
      gradients.emplace_back();
      for (std::int64_t i = 0; i < toy_tensors()[t].size(); ++i) {
        double sum = 0.0;
        for (int part = 0; part < kParts; ++part) sum += toy_gradient(t, i, step, part, settings.exact);
        gradients.back().push_back(sum);
      }
    }
    run.results.push_back(run.optimizer.step(std::move(gradients), kPartWeight * kParts, kRunRate));
  }
  return run;
}

void expect_close_to_reference(const WholeState& state, const ReferenceRun& reference, const std::string& what) {
  SCOPED_TRACE(what);
  EXPECT_EQ(state.wrong_values, 0);
  double worst = 0.0;
  for (std::size_t t = 0; t < toy_tensors().size(); ++t) {
    const auto& expected = reference.optimizer.tensors()[t];
    for (std::size_t i = 0; i < expected.weight.size(); ++i) {
      EXPECT_EQ(state.coverage[t][i], expected.frozen ? 0.0 : 1.0) << expected.name << " element " << i;
      if (expected.frozen) continue;
      worst = std::max(worst, std::abs(state.weight[t][i] - expected.weight[i]));
      worst = std::max(worst, std::abs(state.exp_avg[t][i] - expected.exp_avg[i]));
      worst = std::max(worst, std::abs(state.exp_avg_sq[t][i] - expected.exp_avg_sq[i]));
    }
  }
  EXPECT_LT(worst, 2e-6);
  ASSERT_EQ(state.results.size(), reference.results.size());
  for (std::size_t s = 0; s < state.results.size(); ++s) {
    const StepResult &result = state.results[s], &expected = reference.results[s];
    EXPECT_FALSE(result.skipped);
    EXPECT_DOUBLE_EQ(result.sums.weight, kPartWeight * kParts);
    EXPECT_DOUBLE_EQ(result.sums.weighted_loss, kLossOfPart * kParts);
    EXPECT_DOUBLE_EQ(result.sums.tokens, 10.0 * kParts);
    EXPECT_NEAR(result.grad_norm, expected.grad_norm, 1e-6 * expected.grad_norm);
    EXPECT_EQ(result.angles.groups, expected.angles.groups);
    EXPECT_NEAR(result.angles.mean, expected.angles.mean, 1e-3);
    EXPECT_NEAR(result.angles.max, expected.angles.max, 1e-2);
    EXPECT_NEAR(result.angles.clipped_share, expected.angles.clipped_share, 1e-12);
  }
}

std::vector<OptimizerOptions> option_cases() {
  OptimizerOptions base;
  base.clip_norm = 0.5;
  base.weight_decay = 0.1;
  std::vector<OptimizerOptions> cases;
  for (const auto scope : {AngleScope::kTensor, AngleScope::kLayer, AngleScope::kGlobal}) {
    for (const auto obtuse : {Obtuse::kKeep, Obtuse::kDrop, Obtuse::kProject, Obtuse::kReflect, Obtuse::kRotate}) {
      OptimizerOptions options = base;
      options.angle_scope = scope;
      options.obtuse = obtuse;
      cases.push_back(options);
    }
  }
  for (const double max_angle : {10.0, 60.0, 90.0, 180.0}) {
    cases.push_back(base);
    cases.back().max_angle = max_angle;
    cases.back().clip_norm = 0.0;
  }
  cases.push_back(base);
  cases.back().name = "adamw";
  cases.push_back(cases.back());
  cases.back().clip_norm = 0.0;
  cases.back().weight_decay = 0.0;
  return cases;
}

std::string name_of(const OptimizerOptions& options) {
  return fmt::format("{} angle {} scope {} obtuse {} clip {} zero {}", options.name, options.max_angle,
                     static_cast<int>(options.angle_scope), static_cast<int>(options.obtuse), options.clip_norm,
                     options.zero_stage);
}

template WholeState run_training<float>(Communicator&, const RunSettings&);
template WholeState run_training<BFloat16>(Communicator&, const RunSettings&);
template WholeState run_training_on_threads<float>(int, const RunSettings&);
template WholeState run_training_on_threads<BFloat16>(int, const RunSettings&);
template class ToyTrainer<float>;
template class ToyTrainer<BFloat16>;

}  // namespace reprise
