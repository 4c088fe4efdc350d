#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.hpp"
#include "parallel/communicator.hpp"

namespace reprise {

/// The last collectives that a rank asked of one group: what is written when one fails, so that the ranks' files can be
/// laid side by side. Numbers count from 1 and agree on all ranks while the ranks do.
class CollectiveLog {
 public:
  struct Entry {
    std::uint64_t number = 0;
    Collective verb = Collective::kBarrier;
    std::int64_t count = 0;  ///< elements of the buffer that all ranks' parts make up; all_to_all: what this rank sends
    DType dtype = DType::kUInt8;
    double seconds = 0.0;  ///< when it was asked for, since the group was made
  };

  CollectiveLog(std::string group, int rank, int size, int capacity);

  /// Remembers a new one and forgets the oldest; its number.
  std::uint64_t add(Collective verb, std::int64_t count, DType dtype, double seconds);
  /// The latest with that number; an empty entry when it is forgotten.
  [[nodiscard]] Entry find(std::uint64_t number) const;
  [[nodiscard]] std::uint64_t last() const { return last_; }

  /// "all_gather (collective 17, 1000 elements of float32)"
  [[nodiscard]] std::string describe(std::uint64_t number) const;
  /// One line each, oldest first: done up to number `done`, handed to the device up to `queued`.
  [[nodiscard]] std::string text(std::uint64_t done, std::uint64_t queued) const;

 private:
  std::string group_;
  int rank_, size_;
  std::vector<Entry> ring_;
  std::uint64_t last_ = 0;
};

}  // namespace reprise
