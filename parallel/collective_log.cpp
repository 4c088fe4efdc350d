#include "parallel/collective_log.hpp"

#include <utility>

#include "core/error.hpp"

namespace reprise {

namespace {

std::string_view state_name(std::uint64_t number, std::uint64_t done, std::uint64_t queued) {
  if (number <= done) return "done";
  return number <= queued ? "queued" : "asked";
}

}  // namespace

CollectiveLog::CollectiveLog(std::string group, int rank, int size, int capacity)
    : group_(std::move(group)), rank_(rank), size_(size) {
  REPRISE_CHECK(capacity > 0, "[{}] a log of {} collectives", group_, capacity);
  ring_.resize(static_cast<std::size_t>(capacity));
}

std::uint64_t CollectiveLog::add(Collective verb, std::int64_t count, DType dtype, double seconds) {
  ++last_;
  ring_[last_ % ring_.size()] = {last_, verb, count, dtype, seconds};
  return last_;
}

CollectiveLog::Entry CollectiveLog::find(std::uint64_t number) const {
  const Entry& entry = ring_[number % ring_.size()];
  return entry.number == number ? entry : Entry{};
}

std::string CollectiveLog::describe(std::uint64_t number) const {
  const Entry entry = find(number);
  if (entry.number == 0) return fmt::format("collective {}", number);
  return fmt::format("{} (collective {}, {} elements of {})", name_of(entry.verb), number, entry.count,
                     name_of(entry.dtype));
}

std::string CollectiveLog::text(std::uint64_t done, std::uint64_t queued) const {
  std::string lines;
  const std::uint64_t first = last_ >= ring_.size() ? last_ - ring_.size() + 1 : 1;
  for (std::uint64_t number = first; number <= last_; ++number) {
    const Entry entry = find(number);
    lines += fmt::format("group={} rank={}/{} collective={} verb={} count={} dtype={} state={} asked_at={:.3f}\n",
                         group_, rank_, size_, number, name_of(entry.verb), entry.count, name_of(entry.dtype),
                         state_name(number, done, queued), entry.seconds);
  }
  return lines;
}

}  // namespace reprise
