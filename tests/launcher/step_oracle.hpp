#pragma once

#include <cmath>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "core/transfer.hpp"
#include "launcher/joined_dataset.hpp"
#include "launcher/model_session.hpp"
#include "launcher/store_provenance.hpp"
#include "loss/candidate_tiles.hpp"
#include "loss/replay_store.hpp"
#include "parallel/self_communicator.hpp"
#include "tests/layers/decoder_oracle.hpp"
#include "tests/support/run_fixture.hpp"

namespace reprise {

inline Tables read_weights(const RunFixture& fixture) {
  const auto world = make_self_communicator();
  Session session(*world, 1, false, 1);
  const auto model = load_model<float>(session, fixture.config.model.path, true);
  Tables tables;
  for (std::int64_t p = 0; p < model->parameters.count(); ++p) {
    const auto values = model->parameters.value(p);
    Table table(values.rows, values.cols);
    const std::vector<float> on_host = to_host(session.stream(), values.flat());
    std::copy(on_host.begin(), on_host.end(), table.data.begin());
    tables[model->parameters.spec(p).name] = table;
  }
  return tables;
}

/// Ids whose logits enter a token's softmax, each with what is added to its logit.
using Candidates = std::vector<std::pair<std::int64_t, double>>;

/// The whole step in float64: one document after the other, full logits, textbook updates.
struct StepOracle {
  Tables weights, gradient, exp_avg, exp_avg_sq;
  double loss = 0.0, grad_norm = 0.0, scale = 0.0;
  int steps = 0;
};

/// What a store holds: a set of ids for every target of every document.
using Sets = std::vector<std::vector<std::set<std::int64_t>>>;

inline Candidates candidates_of(const RunFixture& fixture, const Sets& sets, std::size_t document, std::size_t target,
                                int step) {
  Candidates candidates;
  if (fixture.config.normalization() == Normalization::kFull) {
    for (std::int64_t v = 0; v < fixture.model.vocab_size; ++v) candidates.emplace_back(v, 0.0);
    return candidates;
  }
  const bool tiles = fixture.config.normalization() == Normalization::kTile;
  const auto width = static_cast<std::size_t>(tiles ? fixture.config.replay.tile_tokens : 1);
  const auto& records = sets[document];
  std::set<std::int64_t> members;
  for (std::size_t t = target / width * width; t < std::min(records.size(), (target / width + 1) * width); ++t) {
    members.insert(records[t].begin(), records[t].end());
  }
  for (const std::int64_t id : members) candidates.emplace_back(id, 0.0);
  std::vector<std::int64_t> others;
  for (const std::int32_t id :
       sample_negatives(static_cast<std::uint64_t>(fixture.config.train.seed), static_cast<std::uint64_t>(step),
                        fixture.config.replay.negatives, fixture.model.vocab_size)) {
    if (members.count(id) == 0) others.push_back(id);
  }
  const auto outside = static_cast<double>(fixture.model.vocab_size) - static_cast<double>(members.size());
  for (const std::int64_t id : others) {
    candidates.emplace_back(id, std::log(outside / static_cast<double>(others.size())));
  }
  return candidates;
}

inline void add_document(const RunFixture& fixture, const Sets& sets, std::size_t document, StepOracle& oracle,
                         double& weighted, double& total) {
  const auto& all = fixture.documents.tokens[document];
  const auto& mask = fixture.documents.options.masks[document];
  const auto& weight = fixture.documents.options.weights[document];
  const std::vector<std::int32_t> tokens(all.begin(), all.end() - 1);
  DecoderOracle decoder(fixture.model, oracle.weights);
  const Table hidden = decoder.forward(tokens, {0, static_cast<std::int64_t>(tokens.size())});
  const std::string head = fixture.model.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  const Table& w = oracle.weights.at(head);
  Table d_hidden(hidden.rows, hidden.cols), d_head(w.rows, w.cols);
  std::size_t target = 0;
  for (std::int64_t t = 0; t < hidden.rows; ++t) {
    const auto next = static_cast<std::size_t>(t + 1);
    if (mask[next] == 0) continue;
    const Candidates candidates = candidates_of(fixture, sets, document, target++, oracle.steps);
    std::vector<double> logits;
    double sum = 0.0;
    for (const auto& [v, raised] : candidates) {
      double logit = raised;
      for (std::int64_t c = 0; c < w.cols; ++c) logit += hidden(t, c) * w(v, c);
      logits.push_back(logit);
      sum += std::exp(logit);
    }
    for (std::size_t k = 0; k < candidates.size(); ++k) {
      const std::int64_t v = candidates[k].first;
      const bool is_gold = v == all[next];
      if (is_gold) weighted += weight[next] * (std::log(sum) - logits[k]);
      const double delta = weight[next] * (std::exp(logits[k]) / sum - (is_gold ? 1.0 : 0.0));
      for (std::int64_t c = 0; c < w.cols; ++c) {
        d_hidden(t, c) += delta * w(v, c);
        d_head(v, c) += delta * hidden(t, c);
      }
    }
    total += weight[next];
  }
  Tables gradient = decoder.backward(d_hidden);
  for (auto& [name, table] : oracle.gradient) {
    for (std::size_t i = 0; i < table.data.size(); ++i) {
      table.data[i] += gradient[name].data[i] + (name == head ? d_head.data[i] : 0.0);
    }
  }
}

/// Writes a store of random sets for the fixture's data, as `collect` would leave it.
inline Sets make_store(const RunFixture& fixture) {
  std::mt19937_64 generator(7);
  Sets sets;
  const StoreProvenance provenance = store_provenance(fixture.config);
  const JoinedDataset dataset(fixture.config.data.train);
  ReplayStoreWriter writer(fixture.config.replay.store, 0, provenance);
  for (std::int64_t d = 0; d < dataset.size(); ++d) {
    const Sample sample = dataset.read(d);
    SampleRecords records;
    records.sample_id = sample.id;
    records.sample_hash = sample.hash;
    sets.emplace_back();
    for (std::size_t next = 1; next < sample.mask.size(); ++next) {
      if (sample.mask[next] == 0) continue;
      std::set<std::int64_t> set{sample.tokens[next]};
      while (set.size() < 2 + generator() % 6) {
        set.insert(static_cast<std::int64_t>(generator() % static_cast<std::uint64_t>(fixture.model.vocab_size)));
      }
      records.position.push_back(static_cast<std::uint32_t>(next - 1));
      records.gold.push_back(static_cast<std::uint32_t>(sample.tokens[next]));
      records.flags.push_back(0);
      records.mass.push_back(0.5f);
      records.confidence.push_back(0.1f);
      for (const std::int64_t id : set) records.ids.push_back(static_cast<std::uint32_t>(id));
      records.id_begin.push_back(static_cast<std::int64_t>(records.ids.size()));
      sets.back().push_back(set);
    }
    writer.append(records);
  }
  writer.commit(1);
  finish_store(fixture.config.replay.store, provenance, 1, "{}");
  return sets;
}

/// g' of MoClip for one tensor (scope "tensor", obtuse "keep").
inline std::vector<double> cap_angle(const std::vector<double>& g, const std::vector<double>& m, double max_angle) {
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

inline void oracle_step(const RunFixture& fixture, const Sets& sets, double lr, StepOracle& oracle) {
  for (const auto& [name, value] : oracle.weights) {
    oracle.gradient[name] = Table(value.rows, value.cols);
    if (oracle.steps == 0) oracle.exp_avg[name] = oracle.exp_avg_sq[name] = Table(value.rows, value.cols);
  }
  double weighted = 0.0, total = 0.0, squares = 0.0;
  for (std::size_t d = 0; d < fixture.documents.tokens.size(); ++d) {
    add_document(fixture, sets, d, oracle, weighted, total);
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

}  // namespace reprise
