#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>
#include <tuple>

#include "launcher/trainer.hpp"
#include "parallel/self_communicator.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/layers/decoder_oracle.hpp"
#include "tests/support/run_fixture.hpp"

namespace reprise {
namespace {

Tables read_weights(const RunFixture& fixture) {
  const auto world = make_self_communicator();
  Session session(*world, 1, false, 1);
  const auto model = load_model<float>(session, fixture.config.model.path, true);
  Tables tables;
  for (std::int64_t p = 0; p < model->parameters.count(); ++p) {
    const auto values = model->parameters.value(p);
    Table table(values.rows, values.cols);
    std::copy(values.data, values.data + values.size(), table.data.begin());
    tables[model->parameters.spec(p).name] = table;
  }
  return tables;
}

/// The whole step in float64: one document after the other, full logits, textbook updates.
struct StepOracle {
  Tables weights, gradient, exp_avg, exp_avg_sq;
  double loss = 0.0, grad_norm = 0.0, scale = 0.0;
  int steps = 0;
};

void add_document(const RunFixture& fixture, std::size_t document, StepOracle& oracle, double& weighted,
                  double& total) {
  const auto& all = fixture.documents.tokens[document];
  const auto& mask = fixture.documents.options.masks[document];
  const auto& weight = fixture.documents.options.weights[document];
  const std::vector<std::int32_t> tokens(all.begin(), all.end() - 1);
  DecoderOracle decoder(fixture.model, oracle.weights);
  const Table hidden = decoder.forward(tokens, {0, static_cast<std::int64_t>(tokens.size())});
  const std::string head = fixture.model.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  const Table& w = oracle.weights.at(head);
  Table d_hidden(hidden.rows, hidden.cols), d_head(w.rows, w.cols);
  for (std::int64_t t = 0; t < hidden.rows; ++t) {
    const auto next = static_cast<std::size_t>(t + 1);
    if (mask[next] == 0) continue;
    std::vector<double> logits(static_cast<std::size_t>(w.rows), 0.0);
    double sum = 0.0;
    for (std::int64_t v = 0; v < w.rows; ++v) {
      for (std::int64_t c = 0; c < w.cols; ++c) logits[static_cast<std::size_t>(v)] += hidden(t, c) * w(v, c);
      sum += std::exp(logits[static_cast<std::size_t>(v)]);
    }
    weighted += weight[next] * (std::log(sum) - logits[static_cast<std::size_t>(all[next])]);
    total += weight[next];
    for (std::int64_t v = 0; v < w.rows; ++v) {
      const double probability = std::exp(logits[static_cast<std::size_t>(v)]) / sum;
      const double delta = weight[next] * (probability - (v == all[next] ? 1.0 : 0.0));
      for (std::int64_t c = 0; c < w.cols; ++c) {
        d_hidden(t, c) += delta * w(v, c);
        d_head(v, c) += delta * hidden(t, c);
      }
    }
  }
  Tables gradient = decoder.backward(d_hidden);
  for (auto& [name, table] : oracle.gradient) {
    for (std::size_t i = 0; i < table.data.size(); ++i) {
      table.data[i] += gradient[name].data[i] + (name == head ? d_head.data[i] : 0.0);
    }
  }
}

/// g' of MoClip for one tensor (scope "tensor", obtuse "keep").
std::vector<double> cap_angle(const std::vector<double>& g, const std::vector<double>& m, double max_angle) {
  double gm = 0.0, gg = 0.0, mm = 0.0;
  for (std::size_t i = 0; i < g.size(); ++i) {
    gm += g[i] * m[i];
    gg += g[i] * g[i];
    mm += m[i] * m[i];
  }
  if (gg == 0.0 || mm == 0.0) return g;
  std::vector<double> parallel(g.size()), result(g.size());
  double perpendicular_norm = 0.0, parallel_norm = 0.0;
  for (std::size_t i = 0; i < g.size(); ++i) {
    parallel[i] = gm / mm * m[i];
    parallel_norm += parallel[i] * parallel[i];
    perpendicular_norm += (g[i] - parallel[i]) * (g[i] - parallel[i]);
  }
  const double limit = std::sqrt(parallel_norm) * std::tan(max_angle * std::acos(-1.0) / 180.0);
  const double kept = std::min(1.0, limit / std::sqrt(perpendicular_norm));
  for (std::size_t i = 0; i < g.size(); ++i) result[i] = parallel[i] + kept * (g[i] - parallel[i]);
  return result;
}

void oracle_step(const RunFixture& fixture, double lr, StepOracle& oracle) {
  for (const auto& [name, value] : oracle.weights) {
    oracle.gradient[name] = Table(value.rows, value.cols);
    if (oracle.steps == 0) oracle.exp_avg[name] = oracle.exp_avg_sq[name] = Table(value.rows, value.cols);
  }
  double weighted = 0.0, total = 0.0, squares = 0.0;
  for (std::size_t d = 0; d < fixture.documents.tokens.size(); ++d) {
    add_document(fixture, d, oracle, weighted, total);
  }
  for (const auto& [name, table] : oracle.gradient) {
    for (const double g : table.data) squares += g * g;
  }
  const auto& options = fixture.config.optimizer;
  oracle.loss = weighted / total;
  oracle.grad_norm = std::sqrt(squares) / total;
  oracle.scale = std::min(1.0, options.clip_norm / oracle.grad_norm) / total;
  ++oracle.steps;
  const double b1 = options.betas[0], b2 = options.betas[1];
  const double c1 = 1.0 - std::pow(b1, oracle.steps), c2 = 1.0 - std::pow(b2, oracle.steps);
  for (auto& [name, theta] : oracle.weights) {
    std::vector<double> g = oracle.gradient[name].data;
    for (double& value : g) value *= oracle.scale;
    auto &m = oracle.exp_avg[name].data, &v = oracle.exp_avg_sq[name].data;
    if (options.name == "moclip") g = cap_angle(g, m, options.max_angle);
    const double decay = theta.cols == 1 ? 0.0 : options.weight_decay;
    for (std::size_t i = 0; i < g.size(); ++i) {
      m[i] = b1 * m[i] + (1.0 - b1) * g[i];
      v[i] = b2 * v[i] + (1.0 - b2) * g[i] * g[i];
      const double root = std::sqrt(v[i] / c2);
      const double move = options.name == "moclip" ? std::atan2(m[i] / c1, root) : m[i] / c1 / (root + options.eps);
      theta.data[i] -= lr * (move + decay * theta.data[i]);
    }
  }
}

/// What the ranks of a layout have after some steps, put together from the pieces that they own.
struct Outcome {
  Tables exp_avg, master, values;
  std::vector<StepMetrics> metrics;
};

Outcome run_steps(const RunFixture& fixture, int tensor, int data, int steps, double lr) {
  Outcome outcome;
  std::mutex mutex;
  std::map<std::string, std::int64_t> owned;
  run_ranks(tensor * data, [&](Communicator& world) {
    Session session(world, tensor, fixture.config.parallel.sequence_parallel, 1);
    const auto model = load_model<float>(session, fixture.config.model.path, false);
    const TrainingData training(fixture.config, model->config.vocab_size, session.groups());
    Trainer<float> trainer(session, fixture.config, *model);
    std::vector<StepMetrics> metrics;
    for (int i = 0; i < steps; ++i) metrics.push_back(trainer.step(training.prepare(i), lr, false).metrics);
    const auto pieces = trainer.optimizer().owned_pieces();

    const std::lock_guard lock(mutex);
    if (world.rank() == 0) outcome.metrics = metrics;
    const auto place = [](Tables& tables, const ParameterSpec& spec, std::int64_t i, float value) {
      auto& table = tables.try_emplace(spec.name, spec.global_rows, spec.global_cols).first->second;
      table(spec.row_begin + i / spec.cols(), spec.col_begin + i % spec.cols()) = static_cast<double>(value);
    };
    for (const OwnedPiece& piece : pieces) {
      const ParameterSpec& spec = model->parameters.spec(piece.parameter);
      for (std::int64_t i = 0; i < piece.local.size(); ++i) {
        place(outcome.exp_avg, spec, piece.local.begin + i, piece.exp_avg[i]);
        place(outcome.master, spec, piece.local.begin + i, piece.master[i]);
      }
      owned[spec.name] += piece.local.size();
    }
    for (std::int64_t p = 0; p < model->parameters.count(); ++p) {
      const ParameterSpec& spec = model->parameters.spec(p);
      for (std::int64_t i = 0; i < spec.size(); ++i) {
        place(outcome.values, spec, i, model->parameters.value(p).data[i]);
      }
    }
  });
  for (const auto& [name, count] : owned) EXPECT_EQ(count, static_cast<std::int64_t>(outcome.master[name].data.size()));
  return outcome;
}

double largest(const Table& table) {
  double value = 0.0;
  for (const double x : table.data) value = std::max(value, std::abs(x));
  return value;
}

/// Every element within `tolerance` of the table's largest.
void expect_close(const Table& actual, const Table& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(actual.data.size(), expected.data.size()) << what;
  const double bound = tolerance * largest(expected) + 1e-12;
  for (std::size_t i = 0; i < expected.data.size(); ++i) {
    ASSERT_NEAR(actual.data[i], expected.data[i], bound) << what << " element " << i;
  }
}

RandomDocumentsOptions weighted_documents() {
  RandomDocumentsOptions options;
  options.weights = true;
  return options;
}

class TrainStepTest : public testing::TestWithParam<std::tuple<int, int, int, bool>> {};

TEST_P(TrainStepTest, LossGradientsAndUpdatesAreThoseOfTheOracle) {
  const auto [tensor, data, zero_stage, sequence_parallel] = GetParam();
  RunFixture fixture(weighted_documents());
  fixture.config.optimizer.zero_stage = zero_stage;
  fixture.config.optimizer.eps = 1e-3;  // keeps the update smooth where a gradient is all rounding
  fixture.config.optimizer.weight_decay = 0.1;
  fixture.config.parallel.sequence_parallel = sequence_parallel;
  constexpr double kRate = 1e-2;

  StepOracle oracle{read_weights(fixture), {}, {}, {}, 0.0, 0.0, 0.0, 0};
  oracle_step(fixture, kRate, oracle);
  const Outcome outcome = run_steps(fixture, tensor, data, 1, kRate);

  EXPECT_NEAR(outcome.metrics[0].loss, oracle.loss, 1e-6);
  EXPECT_NEAR(outcome.metrics[0].grad_norm, oracle.grad_norm, 1e-5 * oracle.grad_norm);
  EXPECT_FALSE(outcome.metrics[0].skipped);
  for (const auto& [name, table] : oracle.gradient) {
    Table gradient = outcome.exp_avg.at(name);
    for (double& value : gradient.data) value /= (1.0 - fixture.config.optimizer.betas[0]) * oracle.scale;
    expect_close(gradient, table, 2e-5, "gradient of " + name);
    expect_close(outcome.master.at(name), oracle.weights.at(name), 1e-6, "master of " + name);
    expect_close(outcome.values.at(name), oracle.weights.at(name), 1e-6, "value of " + name);
  }
}

TEST_P(TrainStepTest, MoClipTurnsAndMovesAsTheOracle) {
  const auto [tensor, data, zero_stage, sequence_parallel] = GetParam();
  RunFixture fixture(weighted_documents());
  fixture.config.optimizer.name = "moclip";
  fixture.config.optimizer.max_angle = 10.0;  // so that the second step turns every gradient
  fixture.config.optimizer.zero_stage = zero_stage;
  fixture.config.parallel.sequence_parallel = sequence_parallel;
  constexpr double kRate = 2e-2;

  StepOracle oracle{read_weights(fixture), {}, {}, {}, 0.0, 0.0, 0.0, 0};
  oracle_step(fixture, kRate, oracle);
  const Tables first = oracle.exp_avg;
  oracle_step(fixture, kRate, oracle);
  const Outcome outcome = run_steps(fixture, tensor, data, 2, kRate);

  EXPECT_NEAR(outcome.metrics[1].loss, oracle.loss, 1e-4);
  ASSERT_TRUE(outcome.metrics[1].angles.has_value());
  EXPECT_GT(outcome.metrics[1].angles->clipped_share, 0.5);
  for (const auto& [name, table] : oracle.exp_avg) {
    expect_close(outcome.exp_avg.at(name), table, 1e-3, "momentum of " + name);
    // A coordinate whose gradients are all rounding still makes a whole step, in a direction that nobody can foretell.
    const Table& before = first.at(name);
    const double noise = 1e-2 * largest(table);
    for (std::size_t i = 0; i < table.data.size(); ++i) {
      if (std::abs(table.data[i]) < noise || std::abs(before.data[i]) < noise) continue;
      ASSERT_NEAR(outcome.master.at(name).data[i], oracle.weights.at(name).data[i], 2e-2 * kRate) << name << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, TrainStepTest,
    testing::Values(std::tuple{1, 1, 0, false}, std::tuple{1, 1, 1, false}, std::tuple{1, 1, 2, false},
                    std::tuple{2, 1, 0, false}, std::tuple{2, 1, 1, true}, std::tuple{2, 1, 2, false},
                    std::tuple{1, 2, 0, false}, std::tuple{1, 2, 1, false}, std::tuple{1, 2, 2, false},
                    std::tuple{2, 2, 0, false}, std::tuple{2, 2, 1, false}, std::tuple{2, 2, 2, true}),
    [](const auto& layout) {
      return fmt::format("Tensor{}Data{}Zero{}{}", std::get<0>(layout.param), std::get<1>(layout.param),
                         std::get<2>(layout.param), std::get<3>(layout.param) ? "SequenceParallel" : "");
    });

TEST(TrainStep, BatchingChangesTheLossByRoundingOnly) {
  RunFixture fixture(weighted_documents());
  const Outcome reference = run_steps(fixture, 1, 1, 2, 1e-3);
  for (const auto& [micro_batch, pack, data] :
       {std::tuple{1, false, 1}, std::tuple{8, false, 1}, std::tuple{1, true, 2}, std::tuple{2, true, 4}}) {
    fixture.config.train.micro_batch = micro_batch;
    fixture.config.data.pack = pack;
    const Outcome other = run_steps(fixture, 1, data, 2, 1e-3);
    for (std::size_t i = 0; i < 2; ++i) {
      EXPECT_NEAR(other.metrics[i].loss, reference.metrics[i].loss, 2e-6);
      EXPECT_EQ(other.metrics[i].tokens, reference.metrics[i].tokens);
      EXPECT_NEAR(other.metrics[i].grad_norm, reference.metrics[i].grad_norm, 1e-4 * reference.metrics[i].grad_norm);
    }
  }
}

TEST(TrainStep, SequenceLengthCutsAndSamplesWithoutTargetsDoNoWork) {
  RunFixture fixture;
  auto& documents = fixture.documents;
  std::fill(documents.options.masks[0].begin(), documents.options.masks[0].end(), std::uint8_t{0});
  make_dataset(fixture.folder / "data", documents.tokens, documents.options);
  fixture.config.data.sequence_length = 6;
  std::int64_t targets = 0;
  for (const auto& mask : documents.options.masks) {
    for (std::size_t i = 1; i < std::min<std::size_t>(mask.size(), 7); ++i) targets += mask[i];
  }
  const Outcome outcome = run_steps(fixture, 1, 2, 1, 1e-3);
  EXPECT_EQ(outcome.metrics[0].tokens, targets);
}

TEST(TrainStep, AllRanksSkipAStepWhoseGradientIsNotFinite) {
  RunFixture fixture(weighted_documents());
  for (const int bad_rank : {0, 3}) {
    run_ranks(4, [&](Communicator& world) {
      Session session(world, 2, false, 1);
      const auto model = load_model<float>(session, fixture.config.model.path, false);
      const TrainingData training(fixture.config, model->config.vocab_size, session.groups());
      Trainer<float> trainer(session, fixture.config, *model);
      const auto values = model->parameters.values();
      const std::vector<float> before(values.begin(), values.end());
      if (world.rank() == bad_rank) trainer.poison_gradient();
      const StepOutcome skipped = trainer.step(training.prepare(0), 1e-3, false);
      EXPECT_TRUE(skipped.metrics.skipped);
      EXPECT_EQ(trainer.optimizer().steps_taken(), 0);
      EXPECT_TRUE(std::equal(before.begin(), before.end(), values.begin()));
      EXPECT_FALSE(trainer.step(training.prepare(1), 1e-3, false).metrics.skipped);
      EXPECT_FALSE(std::equal(before.begin(), before.end(), values.begin()));
    });
  }
}

TEST(TrainStep, HiddenStatesThatAreNotFiniteSkipTheStepOnAllRanks) {
  RunFixture fixture(weighted_documents());
  run_ranks(4, [&](Communicator& world) {
    Session session(world, 2, false, 1);
    const auto model = load_model<float>(session, fixture.config.model.path, false);
    const TrainingData training(fixture.config, model->config.vocab_size, session.groups());
    Trainer<float> trainer(session, fixture.config, *model);
    if (session.groups().dp_rank() == 1) {  // one replica has gone bad
      const std::int64_t norm = model->parameters.find("model.norm.weight");
      model->parameters.value(norm).data[0] = std::numeric_limits<float>::quiet_NaN();
    }
    const StepOutcome outcome = trainer.step(training.prepare(0), 1e-3, false);
    EXPECT_TRUE(outcome.metrics.skipped);
    EXPECT_FALSE(outcome.stop);
  });
}

TEST(TrainStep, AStopIsAgreedInTheSameStep) {
  const RunFixture fixture;
  run_ranks(2, [&](Communicator& world) {
    Session session(world, 2, false, 1);
    const auto model = load_model<float>(session, fixture.config.model.path, false);
    const TrainingData training(fixture.config, model->config.vocab_size, session.groups());
    Trainer<float> trainer(session, fixture.config, *model);
    EXPECT_FALSE(trainer.step(training.prepare(0), 1e-3, false).stop);
    EXPECT_TRUE(trainer.step(training.prepare(1), 1e-3, world.rank() == 1).stop);
  });
}

}  // namespace
}  // namespace reprise
