#include "parallel/communicator.hpp"

#include <numeric>

#include "core/error.hpp"
#include "parallel/shard.hpp"

namespace reprise {

std::string_view name_of(Collective verb) {
  switch (verb) {
    case Collective::kAllReduce: return "all_reduce";
    case Collective::kAllGather: return "all_gather";
    case Collective::kReduceScatter: return "reduce_scatter";
    case Collective::kAllToAll: return "all_to_all";
    case Collective::kBroadcast: return "broadcast";
    case Collective::kBarrier: return "barrier";
  }
  return "?";
}

void Communicator::count_all_reduce(std::int64_t elements, std::size_t element_size) {
  const std::int64_t own = even_shard(elements, size_, rank_).size();
  record(Collective::kAllReduce, (elements - own) + own * (size_ - 1), element_size);
}

void Communicator::check_root(int root) const {
  REPRISE_CHECK(0 <= root && root < size_, "[{}] root {} in a group of {} ranks", name_, root, size_);
}

void Communicator::check_gather(std::int64_t own, std::int64_t total, std::span<const std::int64_t> counts) const {
  REPRISE_CHECK(static_cast<int>(counts.size()) == size_, "[{}] {} counts for {} ranks", name_, counts.size(), size_);
  const auto mine = counts[static_cast<std::size_t>(rank_)];
  const auto sum = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  REPRISE_CHECK(own == mine, "[{}] rank {} holds {} elements where its count is {}", name_, rank_, own, mine);
  REPRISE_CHECK(total == sum, "[{}] whole buffer holds {} elements where the counts add to {}", name_, total, sum);
}

void Communicator::check_exchange(std::int64_t send, std::span<const std::int64_t> send_counts, std::int64_t receive,
                                  std::span<const std::int64_t> receive_counts) const {
  const auto ranks = static_cast<std::size_t>(size_);
  REPRISE_CHECK(send_counts.size() == ranks && receive_counts.size() == ranks, "[{}] {} and {} counts for {} ranks",
                name_, send_counts.size(), receive_counts.size(), size_);
  const auto sent = std::accumulate(send_counts.begin(), send_counts.end(), std::int64_t{0});
  const auto received = std::accumulate(receive_counts.begin(), receive_counts.end(), std::int64_t{0});
  REPRISE_CHECK(send == sent && receive == received, "[{}] buffers of {} and {} where the counts add to {} and {}",
                name_, send, receive, sent, received);
}

}  // namespace reprise
