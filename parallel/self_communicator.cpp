#include "parallel/self_communicator.hpp"

#include "core/error.hpp"
#include "parallel/elements.hpp"

namespace reprise {

namespace {

class SelfCommunicator final : public Communicator {
 public:
  explicit SelfCommunicator(std::string name) : Communicator(0, 1, std::move(name)) {}

  void abort(int) noexcept override {}

 protected:
  void do_all_reduce(const Stream&, void*, std::int64_t, DType, ReduceOp) override {}
  void do_all_gather(const Stream& stream, const void* input, void* output, std::span<const std::int64_t> counts,
                     DType dtype) override {
    detail::copy_elements(stream, input, output, counts[0], dtype);
  }
  void do_reduce_scatter(const Stream& stream, const void* input, void* output, std::span<const std::int64_t> counts,
                         DType dtype) override {
    detail::copy_elements(stream, input, output, counts[0], dtype);
  }
  void do_all_to_all(const Stream& stream, const void* send, std::span<const std::int64_t> send_counts, void* receive,
                     std::span<const std::int64_t> receive_counts, DType dtype) override {
    REPRISE_CHECK(send_counts[0] == receive_counts[0], "[{}] all_to_all sends {} elements and expects {}", name(),
                  send_counts[0], receive_counts[0]);
    detail::copy_elements(stream, send, receive, send_counts[0], dtype);
  }
  void do_broadcast(const Stream&, void*, std::int64_t, DType, int) override {}
  void do_barrier() override {}
  std::unique_ptr<Communicator> do_split(int, int, std::string name) override {
    return make_self_communicator(std::move(name));
  }
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator(std::string name) {
  return std::make_unique<SelfCommunicator>(std::move(name));
}

}  // namespace reprise
