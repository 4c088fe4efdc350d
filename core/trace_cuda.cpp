#include <nvtx3/nvToolsExt.h>

#include "core/trace.hpp"

namespace reprise {
namespace {

nvtxDomainHandle_t domain() {
  static const nvtxDomainHandle_t handle = nvtxDomainCreateA("reprise");
  return handle;
}

}  // namespace

TraceRange::TraceRange(const char* name) {
  nvtxEventAttributes_t attributes{};
  attributes.version = NVTX_VERSION;
  attributes.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  attributes.messageType = NVTX_MESSAGE_TYPE_ASCII;
  attributes.message.ascii = name;
  nvtxDomainRangePushEx(domain(), &attributes);
}

TraceRange::~TraceRange() {
  nvtxDomainRangePop(domain());
}

}  // namespace reprise
