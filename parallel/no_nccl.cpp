// In place of the nccl_* files in a build without NCCL.
#include "core/error.hpp"
#include "parallel/nccl_communicator.hpp"

namespace reprise {

std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> bootstrap, const Stream& stream,
                                                     const NcclOptions& options) {
  return make_nccl_communicator(*bootstrap, stream, options);
}

std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, const Stream&, const NcclOptions&) {
  fail(ErrorKind::kUsage,
       "this reprise was built without NCCL: install it and build with the preset cuda, or let ranks exchange through "
       "host memory with parallel.transport = \"staged\"");
}

std::string nccl_version() {
  return {};
}

}  // namespace reprise
