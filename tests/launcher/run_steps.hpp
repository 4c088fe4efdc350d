#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "core/transfer.hpp"
#include "launcher/trainer.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/layers/decoder_oracle.hpp"
#include "tests/support/run_fixture.hpp"

namespace reprise {

/// What the ranks of a layout have after some steps, put together from the pieces that they own.
struct Outcome {
  Tables exp_avg, master, values;
  std::vector<StepMetrics> metrics;
};

inline Outcome run_steps(const RunFixture& fixture, int tensor, int data, int steps, double lr) {
  Outcome outcome;
  std::mutex mutex;
  std::map<std::string, std::int64_t> owned;
  run_ranks(tensor * data, [&](Communicator& world) {
    Session session(world, tensor, fixture.config.parallel.sequence_parallel, 1);
    const auto model = load_model<float>(session, fixture.config.model.path, false, 0, trained_adapter(fixture.config));
    const TrainingData training(fixture.config, model->config.vocab_size, session.groups());
    Trainer<float> trainer(session, fixture.config, *model);
    std::vector<StepMetrics> metrics;
    for (int i = 0; i < steps; ++i) metrics.push_back(trainer.step(training.prepare(i), lr, false).metrics);
    trainer.settle();
    const auto pieces = trainer.optimizer().owned_pieces();

    const std::lock_guard lock(mutex);
    if (world.rank() == 0) outcome.metrics = metrics;
    const auto place = [](Tables& tables, const ParameterSpec& spec, std::int64_t i, float value) {
      auto& table = tables.try_emplace(spec.name, spec.global_rows, spec.global_cols).first->second;
      table(spec.row_begin + i / spec.cols(), spec.col_begin + i % spec.cols()) = static_cast<double>(value);
    };
    for (const OwnedPiece& piece : pieces) {
      const ParameterSpec& spec = model->trained().spec(piece.parameter);
      const auto exp_avg = to_host(session.stream(), piece.exp_avg), master = to_host(session.stream(), piece.master);
      for (std::int64_t i = 0; i < piece.local.size(); ++i) {
        place(outcome.exp_avg, spec, piece.local.begin + i, exp_avg[static_cast<std::size_t>(i)]);
        place(outcome.master, spec, piece.local.begin + i, master[static_cast<std::size_t>(i)]);
      }
      owned[spec.name] += piece.local.size();
    }
    for (std::int64_t p = 0; p < model->trained().count(); ++p) {
      const ParameterSpec& spec = model->trained().spec(p);
      const auto values = to_host(session.stream(), model->trained().value(p).flat());
      for (std::int64_t i = 0; i < spec.size(); ++i) {
        place(outcome.values, spec, i, values[static_cast<std::size_t>(i)]);
      }
    }
  });
  for (const auto& [name, count] : owned) EXPECT_EQ(count, static_cast<std::int64_t>(outcome.master[name].data.size()));
  return outcome;
}

inline double largest(const Table& table) {
  double value = 0.0;
  for (const double x : table.data) value = std::max(value, std::abs(x));
  return value;
}

/// Every element within `tolerance` of the table's largest.
inline void expect_close(const Table& actual, const Table& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(actual.data.size(), expected.data.size()) << what;
  const double bound = tolerance * largest(expected) + 1e-12;
  for (std::size_t i = 0; i < expected.data.size(); ++i) {
    ASSERT_NEAR(actual.data[i], expected.data[i], bound) << what << " element " << i;
  }
}

inline RandomDocumentsOptions weighted_documents() {
  RandomDocumentsOptions options;
  options.weights = true;
  return options;
}

}  // namespace reprise
