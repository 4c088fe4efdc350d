#include "launcher/plan_communicator.hpp"

#include "core/error.hpp"

namespace reprise {

namespace {

class PlanCommunicator final : public Communicator {
 public:
  PlanCommunicator(int rank, int size, std::string name) : Communicator(rank, size, std::move(name)) {}

  void abort(int /*exit_code*/) noexcept override {}

 protected:
  void do_all_reduce(const Stream&, void*, std::int64_t, DType, ReduceOp) override { refuse(); }
  void do_all_gather(const Stream&, const void*, void*, std::span<const std::int64_t>, DType) override { refuse(); }
  void do_reduce_scatter(const Stream&, const void*, void*, std::span<const std::int64_t>, DType) override { refuse(); }
  void do_all_to_all(const Stream&, const void*, std::span<const std::int64_t>, void*, std::span<const std::int64_t>,
                     DType) override {
    refuse();
  }
  void do_broadcast(const Stream&, void*, std::int64_t, DType, int) override { refuse(); }
  void do_barrier() override { refuse(); }
  /// Colour and key of the absent ranks are not known: the part is taken to be this rank alone.
  std::unique_ptr<Communicator> do_split(int, int, std::string part) override {
    return make_plan_communicator(0, 1, std::move(part));
  }

 private:
  [[noreturn]] void refuse() const { fail(ErrorKind::kInternal, "[{}] a plan exchanges nothing", name()); }
};

}  // namespace

std::unique_ptr<Communicator> make_plan_communicator(int rank, int size, std::string name) {
  return std::make_unique<PlanCommunicator>(rank, size, std::move(name));
}

ProcessGroups make_plan_groups(int tensor_size, int data_size, int tensor_rank) {
  ProcessGroups groups;
  groups.tp = make_plan_communicator(tensor_rank, tensor_size, "tp");
  groups.dp = make_plan_communicator(0, data_size, "dp");
  return groups;
}

}  // namespace reprise
