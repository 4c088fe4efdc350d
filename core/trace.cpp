#include "core/trace.hpp"

namespace reprise {

TraceRange::TraceRange(const char*) {}
TraceRange::~TraceRange() = default;

}  // namespace reprise
