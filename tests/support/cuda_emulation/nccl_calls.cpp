// NCCL's transfers as messages between ranks.
#include <nccl.h>

#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/dtype.hpp"
#include "tests/support/cuda_emulation/device_memory.hpp"
#include "tests/support/cuda_emulation/nccl_operation.hpp"

namespace {

using namespace cuda_emulation;

std::size_t size_of_type(ncclDataType_t type) {
  switch (type) {
    case ncclUint8: return 1;
    case ncclBfloat16: return 2;
    case ncclFloat32: return 4;
    case ncclInt64:
    case ncclFloat64: return 8;
  }
  return 0;
}

bool is_range(const void* data, std::size_t bytes) {
  if (bytes == 0) return true;
  if (!is_device_address(data)) return false;
  check_device_range(data, bytes, "nccl");
  return true;
}

void store_at(void* output, std::size_t offset, const Bytes& bytes) {
  if (!bytes.empty()) std::memcpy(static_cast<std::byte*>(real_address(output)) + offset, bytes.data(), bytes.size());
}

template <class T>
void add_typed(Bytes& sum, const Bytes& value) {
  for (std::size_t at = 0; at < sum.size(); at += sizeof(T)) {
    T a, b;
    std::memcpy(&a, &sum[at], sizeof(T));
    std::memcpy(&b, &value[at], sizeof(T));
    if constexpr (std::is_same_v<T, reprise::BFloat16>) {
      a = reprise::BFloat16(static_cast<float>(a) + static_cast<float>(b));  // rounded at every hop
    } else {
      a = a + b;
    }
    std::memcpy(&sum[at], &a, sizeof(T));
  }
}

Bytes sum_of(const std::vector<Bytes>& addends, ncclDataType_t type) {
  Bytes sum = addends.back();
  for (std::size_t r = addends.size() - 1; r-- > 0;) {
    switch (type) {
      case ncclFloat32: add_typed<float>(sum, addends[r]); break;
      case ncclFloat64: add_typed<double>(sum, addends[r]); break;
      case ncclBfloat16: add_typed<reprise::BFloat16>(sum, addends[r]); break;
      default: add_typed<std::uint64_t>(sum, addends[r]); break;
    }
  }
  return sum;
}

std::vector<int> all_ranks(ncclComm_t comm) {
  std::vector<int> ranks;
  for (int r = 0; r < ranks_of(comm); ++r) ranks.push_back(r);
  return ranks;
}
std::vector<Operation::Send> to_all(ncclComm_t comm, const void* data) {
  std::vector<Operation::Send> sends;
  for (const int r : all_ranks(comm)) sends.push_back({r, data});
  return sends;
}

}  // namespace

ncclResult_t ncclSend(const void* data, std::size_t count, ncclDataType_t type, int to, ncclComm_t comm,
                      cudaStream_t stream) {
  const std::size_t bytes = count * size_of_type(type);
  if (!is_range(data, bytes)) return refuse(ncclInvalidArgument, "ncclSend: not device memory");
  return ask({"send of " + std::to_string(bytes) + " bytes", bytes, {{to, data}}, {}, {}, comm, stream});
}

ncclResult_t ncclRecv(void* data, std::size_t count, ncclDataType_t type, int from, ncclComm_t comm,
                      cudaStream_t stream) {
  const std::size_t bytes = count * size_of_type(type);
  if (!is_range(data, bytes)) return refuse(ncclInvalidArgument, "ncclRecv: not device memory");
  const auto store = [=](const std::vector<Bytes>& received) { store_at(data, 0, received[0]); };
  return ask({"send of " + std::to_string(bytes) + " bytes", bytes, {}, {from}, store, comm, stream});
}

ncclResult_t ncclAllGather(const void* input, void* output, std::size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream) {
  const std::size_t bytes = count * size_of_type(type);
  if (!is_range(input, bytes) || !is_range(output, bytes * static_cast<std::size_t>(ranks_of(comm)))) {
    return refuse(ncclInvalidArgument, "ncclAllGather: not device memory");
  }
  const auto store = [=](const std::vector<Bytes>& received) {
    for (std::size_t r = 0; r < received.size(); ++r) store_at(output, r * bytes, received[r]);
  };
  return ask({"all_gather of " + std::to_string(bytes) + " bytes", bytes, to_all(comm, input), all_ranks(comm), store,
              comm, stream});
}

ncclResult_t ncclBroadcast(const void* input, void* output, std::size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  const std::size_t bytes = count * size_of_type(type);
  const bool is_root = rank_of(comm) == root;
  if (!is_range(output, bytes) || (is_root && !is_range(input, bytes))) {
    return refuse(ncclInvalidArgument, "ncclBroadcast: not device memory");
  }
  const auto store = [=](const std::vector<Bytes>& received) { store_at(output, 0, received[0]); };
  return ask({"broadcast of " + std::to_string(bytes) + " bytes from " + std::to_string(root),
              bytes,
              is_root ? to_all(comm, input) : std::vector<Operation::Send>{},
              {root},
              store,
              comm,
              stream});
}

ncclResult_t ncclAllReduce(const void* input, void* output, std::size_t count, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream) {
  const std::size_t bytes = count * size_of_type(type);
  if (op != ncclSum || !is_range(input, bytes) || !is_range(output, bytes)) {
    return refuse(ncclInvalidArgument, "ncclAllReduce: not device memory, or not a sum");
  }
  const auto store = [=](const std::vector<Bytes>& received) { store_at(output, 0, sum_of(received, type)); };
  return ask({"all_reduce of " + std::to_string(bytes) + " bytes, type " + std::to_string(type), bytes,
              to_all(comm, input), all_ranks(comm), store, comm, stream});
}

ncclResult_t ncclReduceScatter(const void* input, void* output, std::size_t count, ncclDataType_t type, ncclRedOp_t op,
                               ncclComm_t comm, cudaStream_t stream) {
  const std::size_t bytes = count * size_of_type(type);
  if (op != ncclSum || !is_range(input, bytes * static_cast<std::size_t>(ranks_of(comm))) || !is_range(output, bytes)) {
    return refuse(ncclInvalidArgument, "ncclReduceScatter: not device memory, or not a sum");
  }
  std::vector<Operation::Send> sends;
  for (const int r : all_ranks(comm)) {
    sends.push_back({r, static_cast<const std::byte*>(input) + static_cast<std::size_t>(r) * bytes});
  }
  const auto store = [=](const std::vector<Bytes>& received) { store_at(output, 0, sum_of(received, type)); };
  return ask({"reduce_scatter of " + std::to_string(bytes) + " bytes, type " + std::to_string(type), bytes,
              std::move(sends), all_ranks(comm), store, comm, stream});
}

ncclResult_t ncclReduce(const void* input, void* output, std::size_t count, ncclDataType_t type, ncclRedOp_t op,
                        int root, ncclComm_t comm, cudaStream_t stream) {
  const std::size_t bytes = count * size_of_type(type);
  const bool is_root = rank_of(comm) == root;
  if (op != ncclSum || !is_range(input, bytes) || (is_root && !is_range(output, bytes))) {
    return refuse(ncclInvalidArgument, "ncclReduce: not device memory, or not a sum");
  }
  const auto store = [=](const std::vector<Bytes>& received) {
    if (is_root) store_at(output, 0, sum_of(received, type));
  };
  return ask(
      {"reduce of " + std::to_string(bytes) + " bytes to " + std::to_string(root) + ", type " + std::to_string(type),
       bytes,
       {{root, input}},
       is_root ? all_ranks(comm) : std::vector<int>{},
       store,
       comm,
       stream});
}
