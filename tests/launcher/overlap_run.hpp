#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "core/transfer.hpp"
#include "launcher/hugging_face.hpp"
#include "launcher/trainer.hpp"
#include "parallel/thread_communicator.hpp"
#include "tests/support/run_fixture.hpp"

namespace reprise {

/// A layout whose optimizer has several buckets a layer, and how its traffic goes.
struct OverlapLayout {
  int tensor = 1, data = 1;
  bool overlap = true;
};

/// Everything that a rank has after its steps.
struct RankBits {
  std::vector<float> values, masters, exp_avg;
  std::vector<double> metrics;

  friend bool operator==(const RankBits&, const RankBits&) = default;
};

/// A rank's trainer over buckets of a few hundred elements.
template <class T>
struct SmallBuckets {
  Session session;
  LoadedModel<T> model;
  std::unique_ptr<TrainingData> data;
  std::unique_ptr<Trainer<T>> trainer;

  SmallBuckets(Communicator& world, RunConfig config, const OverlapLayout& layout)
      : session(world, layout.tensor, config.parallel.sequence_parallel, 1) {
    config.parallel.overlap = layout.overlap;
    model.config = read_decoder_config(config.model.path, config.model.vocab_size);
    const int tensor = session.groups().tp_size();
    model.vocab = VocabPartition::even(model.config.vocab_rows(), model.config.vocab_size, tensor);
    model.model = std::make_unique<DecoderModel<T>>(model.config, model.vocab, session.groups(), model.parameters,
                                                    session.context().sequence_parallel);
    model.parameters.allocate(session.stream(), 600, session.groups().dp_size());
    load_hugging_face(config.model.path, model.config.tie_word_embeddings, model.parameters);
    data = std::make_unique<TrainingData>(config, model.config.vocab_size, session.groups());
    trainer = std::make_unique<Trainer<T>>(session, config, model);
  }
};

template <class T>
std::vector<RankBits> run_with_traffic(const RunConfig& config, const OverlapLayout& layout, int steps) {
  std::vector<RankBits> ranks(static_cast<std::size_t>(layout.tensor * layout.data));
  run_ranks(layout.tensor * layout.data, [&](Communicator& world) {
    SmallBuckets<T> rank(world, config, layout);
    RankBits& bits = ranks[static_cast<std::size_t>(world.rank())];
    for (int i = 0; i < steps; ++i) {
      const StepMetrics metrics = rank.trainer->step(rank.data->prepare(i), 1e-2, false).metrics;
      bits.metrics.insert(bits.metrics.end(), {metrics.loss, metrics.grad_norm, static_cast<double>(metrics.tokens),
                                               metrics.skipped ? 1.0 : 0.0});
    }
    rank.trainer->settle();
    const Stream& stream = rank.session.stream();
    for (std::int64_t p = 0; p < rank.model.parameters.count(); ++p) {
      for (const T value : to_host(stream, rank.model.parameters.value(p).flat())) {
        bits.values.push_back(static_cast<float>(value));
      }
    }
    for (const OwnedPiece& piece : rank.trainer->optimizer().owned_pieces()) {
      const auto master = to_host(stream, piece.master), exp_avg = to_host(stream, piece.exp_avg);
      bits.masters.insert(bits.masters.end(), master.begin(), master.end());
      bits.exp_avg.insert(bits.exp_avg.end(), exp_avg.begin(), exp_avg.end());
    }
  });
  return ranks;
}

/// Runs in which replicas have different numbers of targets, and one has none in its last micro-batch.
struct OverlapFixture : RunFixture {
  OverlapFixture() : RunFixture({.count = 16, .weights = true}) {
    for (const std::size_t d : {6, 7}) {
      std::fill(documents.options.masks[d].begin(), documents.options.masks[d].end(), std::uint8_t{0});
    }
    make_dataset(folder / "data", documents.tokens, documents.options);
    config.data.shuffle = false;
    config.optimizer.name = "moclip";
    config.optimizer.max_angle = 20.0;
  }
};

}  // namespace reprise
