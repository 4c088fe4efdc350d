// Writes a small replay store into the folder argv[1] and prints its records as text, one a line, for
// read_store_test.py: sample hash position gold flags mass confidence ids... with float bits as integers.

#include <fmt/format.h>

#include <bit>

#include "core/half.hpp"
#include "loss/replay_store.hpp"
#include "tests/loss/make_records.hpp"

int main(int argc, char** argv) {
  using namespace reprise;
  if (argc != 2) return 2;
  const StoreProvenance provenance = {{"model", "none"}, {"vocab_size", "128256"}};
  const std::uint64_t kSamples = 40;
  for (int index = 0; index < 2; ++index) {
    ReplayStoreWriter writer(argv[1], index, provenance, 2);
    for (std::uint64_t id = 0; id < kSamples; ++id) {
      if (id % 2 == static_cast<std::uint64_t>(index)) writer.append(random_records(id << 40, 30, 128256, 200, true));
      if (id % 20 == 19) writer.commit(static_cast<std::int64_t>(id / 20) + 1);
    }
  }
  finish_store(argv[1], provenance, 2, R"({"tokens": 1200})");
  for (std::uint64_t id = 0; id < kSamples; ++id) {
    const SampleRecords records = random_records(id << 40, 30, 128256, 200, true);
    for (std::size_t t = 0; t < records.position.size(); ++t) {
      fmt::print("{} {} {} {} {} {} {}", records.sample_id, records.sample_hash, records.position[t], records.gold[t],
                 records.flags[t], std::bit_cast<std::uint32_t>(records.mass[t]),
                 std::bit_cast<std::uint32_t>(records.confidence[t]));
      const auto begin = static_cast<std::size_t>(records.id_begin[t]);
      const auto end = static_cast<std::size_t>(records.id_begin[t + 1]);
      for (std::size_t i = begin; i < end; ++i) {
        fmt::print(" {}:{}", records.ids[i], float_to_half(records.log_prob[i]));
      }
      fmt::print("\n");
    }
  }
}
