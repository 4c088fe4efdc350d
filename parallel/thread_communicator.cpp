#include "parallel/thread_communicator.hpp"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>

#include "core/error.hpp"
#include "parallel/elements.hpp"
#include "parallel/rank_order.hpp"
#include "parallel/shard.hpp"

namespace reprise {

namespace {

using detail::at, detail::Counts;

/// What one rank brings to a call. Peers read it, and the memory it points to, between the first and the last
/// rendezvous of that call.
struct Contribution {
  std::string_view verb;
  DType dtype = DType::kUInt8;
  ReduceOp op = ReduceOp::kSum;
  int root = 0;
  std::int64_t count = 0;
  const void* input = nullptr;
  void* output = nullptr;
  Counts counts{};          // of the parts of the whole, or what is sent to each rank
  Counts receive_counts{};  // all_to_all
  int color = 0, key = 0;
};

struct Job;

/// One group of ranks. Waits are condition variables: ranks may outnumber the cores many times.
class Group {
 public:
  Group(std::shared_ptr<Job> job, std::string name, std::vector<int> members);
  ~Group();

  /// Publishes a contribution and waits for all; throws when a peer has failed or has returned.
  void enter(int rank, const Contribution& mine);
  /// Waits for all inside a call. Every rank has entered and none can fail before, so this always comes to an end and
  /// never throws: nobody unwinds while a peer still reads its memory.
  void meet() noexcept;
  /// Why the contributions do not fit together, the same text on every rank; empty when they do.
  [[nodiscard]] std::string disagreement() const;

  std::vector<Contribution> contributions;         // by rank in this group
  std::vector<std::shared_ptr<Group>> new_groups;  // by rank, while splitting
  const std::shared_ptr<Job> job;
  const std::string name;
  const std::vector<int> members;  // ranks in the world
  std::condition_variable changed;

 private:
  bool arrive();  // with the lock held; true for the last one
  std::size_t arrived_ = 0;
  std::uint64_t generation_ = 0;
};

/// What a world and all groups split from it share.
struct Job {
  explicit Job(int size) : returned(static_cast<std::size_t>(size), false) {}

  std::mutex mutex;  // guards everything here and in the groups
  std::optional<std::string> failure;
  std::vector<bool> returned;  // by world rank: the body of run_ranks came to its end
  std::vector<Group*> groups;

  /// The first failure is kept; every waiting rank wakes up.
  void poison(const std::string& reason) {
    const std::lock_guard lock(mutex);
    if (!failure) failure = reason;
    for (Group* group : groups) group->changed.notify_all();
  }
  void leave(int world_rank) {
    const std::lock_guard lock(mutex);
    returned[static_cast<std::size_t>(world_rank)] = true;
    for (Group* group : groups) group->changed.notify_all();
  }
  [[nodiscard]] std::optional<std::string> hopeless(const Group& group) const {
    if (failure) return failure;
    for (const int member : group.members) {
      if (returned[static_cast<std::size_t>(member)]) {
        return fmt::format("world rank {} has already returned and will never call", member);
      }
    }
    return std::nullopt;
  }
};

Group::Group(std::shared_ptr<Job> shared_job, std::string group_name, std::vector<int> world_ranks)
    : contributions(world_ranks.size()),
      new_groups(world_ranks.size()),
      job(std::move(shared_job)),
      name(std::move(group_name)),
      members(std::move(world_ranks)) {
  const std::lock_guard lock(job->mutex);
  job->groups.push_back(this);
}

Group::~Group() {
  const std::lock_guard lock(job->mutex);
  std::erase(job->groups, this);
}

bool Group::arrive() {
  if (++arrived_ < members.size()) return false;
  arrived_ = 0;
  ++generation_;
  changed.notify_all();
  return true;
}

void Group::enter(int rank, const Contribution& mine) {
  std::unique_lock lock(job->mutex);
  auto trouble = job->failure;
  if (!trouble) {
    contributions[static_cast<std::size_t>(rank)] = mine;
    const auto generation = generation_;
    if (arrive()) return;
    changed.wait(lock, [&] { return generation_ != generation || (trouble = job->hopeless(*this)); });
    if (generation_ != generation) return;
  }
  fail(ErrorKind::kCommunication, "[{}] rank {} in {}: {}", name, rank, mine.verb, *trouble);
}

void Group::meet() noexcept {
  std::unique_lock lock(job->mutex);
  const auto generation = generation_;
  if (!arrive()) changed.wait(lock, [&] { return generation_ != generation; });
}

std::string Group::disagreement() const {
  const Contribution& first = contributions[0];
  for (std::size_t r = 1; r < contributions.size(); ++r) {
    const Contribution& other = contributions[r];
    if (other.verb != first.verb) return fmt::format("rank 0 calls {} and rank {} {}", first.verb, r, other.verb);
    if (other.dtype != first.dtype) {
      return fmt::format("rank 0 brings {} and rank {} {}", name_of(first.dtype), r, name_of(other.dtype));
    }
    if (other.op != first.op || other.root != first.root) return fmt::format("ranks 0 and {} differ in op or root", r);
    if (other.count != first.count) {
      return fmt::format("rank 0 brings {} elements and rank {} {}", first.count, r, other.count);
    }
    const bool same_counts =
        std::equal(first.counts.begin(), first.counts.end(), other.counts.begin(), other.counts.end());
    if (first.receive_counts.empty() && !same_counts) return fmt::format("ranks 0 and {} bring other counts", r);
  }
  if (first.receive_counts.empty()) return {};
  for (std::size_t from = 0; from < contributions.size(); ++from) {
    for (std::size_t to = 0; to < contributions.size(); ++to) {
      const auto sent = contributions[from].counts[to], expected = contributions[to].receive_counts[from];
      if (sent != expected) {
        return fmt::format("rank {} sends {} elements to rank {}, which expects {}", from, sent, to, expected);
      }
    }
  }
  return {};
}

std::int64_t sum_before(Counts counts, std::size_t rank) {
  return std::accumulate(counts.begin(), counts.begin() + static_cast<std::ptrdiff_t>(rank), std::int64_t{0});
}

void copy(const std::byte* from, std::byte* to, std::int64_t count, DType dtype) {
  if (count > 0 && from != to) std::memcpy(to, from, static_cast<std::size_t>(count) * size_of(dtype));
}

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Group> group, int rank)
      : Communicator(rank, static_cast<int>(group->members.size()), group->name), group_(std::move(group)) {}

  void abort(int exit_code) noexcept override {
    group_->job->poison(fmt::format("world rank {} aborted the job with exit code {}", world_rank(), exit_code));
  }
  [[nodiscard]] int world_rank() const { return group_->members[static_cast<std::size_t>(rank())]; }
  void leave() { group_->job->leave(world_rank()); }

 protected:
  void do_all_reduce(const Stream& stream, void* buffer, std::int64_t count, DType dtype, ReduceOp op) override {
    check_stream(stream);
    const auto part_of = [&](int r) { return even_shard(count, size(), r); };
    call({.verb = "all_reduce", .dtype = dtype, .op = op, .count = count, .output = buffer}, [&] {
      const Range mine = part_of(rank());
      std::vector<const void*> inputs;
      for (const auto& peer : group_->contributions) inputs.push_back(at(peer.output, mine.begin, dtype));
      reduce_in_rank_order(stream, inputs, at(buffer, mine.begin, dtype), mine.size(), dtype, op);
      group_->meet();
      for (int r = 0; r < size(); ++r) {
        const Range part = part_of(r);
        copy(at(peer(r).output, part.begin, dtype), at(buffer, part.begin, dtype), part.size(), dtype);
      }
    });
  }

  void do_all_gather(const Stream& stream, const void* input, void* output, Counts counts, DType dtype) override {
    check_stream(stream);
    call({.verb = "all_gather", .dtype = dtype, .input = input, .counts = counts}, [&] {
      for (int r = 0; r < size(); ++r) {
        const auto index = static_cast<std::size_t>(r);
        copy(at(peer(r).input, 0, dtype), at(output, sum_before(counts, index), dtype), counts[index], dtype);
      }
    });
  }

  void do_reduce_scatter(const Stream& stream, const void* input, void* output, Counts counts, DType dtype) override {
    check_stream(stream);
    call({.verb = "reduce_scatter", .dtype = dtype, .input = input, .counts = counts}, [&] {
      const auto mine = static_cast<std::size_t>(rank());
      const auto begin = sum_before(counts, mine);
      std::vector<const void*> inputs;
      for (const auto& peer : group_->contributions) inputs.push_back(at(peer.input, begin, dtype));
      reduce_in_rank_order(stream, inputs, output, counts[mine], dtype, ReduceOp::kSum);
    });
  }

  void do_all_to_all(const Stream& stream, const void* send, Counts send_counts, void* receive, Counts receive_counts,
                     DType dtype) override {
    check_stream(stream);
    const Contribution mine{
        .verb = "all_to_all", .dtype = dtype, .input = send, .counts = send_counts, .receive_counts = receive_counts};
    call(mine, [&] {
      for (int r = 0; r < size(); ++r) {
        const auto index = static_cast<std::size_t>(r);
        const auto from = sum_before(peer(r).counts, static_cast<std::size_t>(rank()));
        copy(at(peer(r).input, from, dtype), at(receive, sum_before(receive_counts, index), dtype),
             receive_counts[index], dtype);
      }
    });
  }

  void do_broadcast(const Stream& stream, void* buffer, std::int64_t count, DType dtype, int root) override {
    check_stream(stream);
    call({.verb = "broadcast", .dtype = dtype, .root = root, .count = count, .output = buffer},
         [&] { copy(at(peer(root).output, 0, dtype), at(buffer, 0, dtype), count, dtype); });
  }

  void do_barrier() override {
    call({.verb = "barrier"}, [] {});
  }

  std::unique_ptr<Communicator> do_split(int color, int key, std::string name) override {
    std::unique_ptr<Communicator> result;
    call({.verb = "split", .color = color, .key = key}, [&] {
      std::vector<int> members;
      for (int r = 0; r < size(); ++r) {
        if (peer(r).color == color) members.push_back(r);
      }
      std::stable_sort(members.begin(), members.end(), [&](int a, int b) { return peer(a).key < peer(b).key; });
      const auto leader = static_cast<std::size_t>(members[0]);
      if (members[0] == rank()) {
        std::vector<int> world_ranks;
        for (const int r : members) world_ranks.push_back(group_->members[static_cast<std::size_t>(r)]);
        group_->new_groups[leader] = std::make_shared<Group>(group_->job, std::move(name), std::move(world_ranks));
      }
      group_->meet();
      const auto place = std::find(members.begin(), members.end(), rank()) - members.begin();
      result = std::make_unique<ThreadCommunicator>(group_->new_groups[leader], static_cast<int>(place));
    });
    group_->new_groups[static_cast<std::size_t>(rank())].reset();
    return result;
  }

 private:
  template <class Work>
  void call(const Contribution& mine, const Work& work) {
    group_->enter(rank(), mine);
    const std::string problem = group_->disagreement();
    if (problem.empty()) work();
    group_->meet();
    require(problem.empty(), ErrorKind::kCommunication, "[{}] rank {} in {}: {}", name(), rank(), mine.verb, problem);
  }
  [[nodiscard]] const Contribution& peer(int r) const { return group_->contributions[static_cast<std::size_t>(r)]; }
  void check_stream(const Stream& stream) const {
    REPRISE_CHECK(stream.is_cpu(), "[{}] ranks as threads exchange host memory", name());
  }

  std::shared_ptr<Group> group_;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int size) {
  REPRISE_CHECK(size >= 1, "a world of {} ranks", size);
  std::vector<int> members(static_cast<std::size_t>(size));
  std::iota(members.begin(), members.end(), 0);
  const auto world = std::make_shared<Group>(std::make_shared<Job>(size), "world", std::move(members));
  std::vector<std::unique_ptr<Communicator>> result;
  for (int r = 0; r < size; ++r) result.push_back(std::make_unique<ThreadCommunicator>(world, r));
  return result;
}

void run_ranks(int size, const std::function<void(Communicator& world)>& body) {
  auto worlds = make_thread_communicators(size);
  std::mutex mutex;
  std::exception_ptr first_error;
  const auto run = [&](ThreadCommunicator& world) {
    try {
      body(world);
      world.leave();
    } catch (...) {
      {
        const std::lock_guard lock(mutex);
        if (!first_error) first_error = std::current_exception();
      }
      world.abort(static_cast<int>(ErrorKind::kCommunication));
    }
  };
  std::vector<std::thread> threads;
  for (auto& world : worlds) threads.emplace_back(run, std::ref(static_cast<ThreadCommunicator&>(*world)));
  for (auto& thread : threads) thread.join();
  if (first_error) std::rethrow_exception(first_error);
}

}  // namespace reprise
