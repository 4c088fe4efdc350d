#pragma once

#include <vector>

#include "loss/local_top_k.hpp"
#include "loss/top_k.hpp"

namespace reprise {

/// What this rank's vocabulary shard gives for the T tokens of a batch, on the stream's device.
struct LocalTopK {
  VectorView<const ShardStatistics> statistics;  ///< [T]
  MatrixView<const Candidate> candidates;        ///< [T, min(k_max, ids of the shard)]
};

/// From the shards' parts to the records of the samples that this rank owns: one all-gather of 16 bytes per token and
/// rank, after which every rank chooses the same positions, and one all-to-all of the candidates (8 bytes each) of the
/// chosen tokens to their owners, both of device memory; after each the host waits for what it needs. Given the same
/// logits the records are the same for every sharding. Throws Error(kNonFinite) on every rank for logits that are not
/// finite. `host`: the threads that choose the sets from a GPU's candidates; with a CPU stream its own do.
[[nodiscard]] std::vector<SampleRecords> exchange_top_k(const Context& context, const LocalTopK& local,
                                                        const VocabPartition& vocab, const CollectBatch& batch,
                                                        const TopKOptions& options, const CpuStream& host = {});

}  // namespace reprise
