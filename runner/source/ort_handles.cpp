#include "ort_handles.hpp"

#include <array>

namespace packager::ort {
namespace {

// The names of OrtErrorCode, as onnxruntime's StatusCodeToString has them.
const char* name_code(int code) {
    static constexpr std::array<const char*, 15> names{
        "SUCCESS",
        "FAIL",
        "INVALID_ARGUMENT",
        "NO_SUCHFILE",
        "NO_MODEL",
        "ENGINE_ERROR",
        "RUNTIME_EXCEPTION",
        "INVALID_PROTOBUF",
        "MODEL_LOADED",
        "NOT_IMPLEMENTED",
        "INVALID_GRAPH",
        "EP_FAIL",
        "MODEL_LOAD_CANCELED",
        "MODEL_REQUIRES_COMPILATION",
        "NOT_FOUND",
    };
    return code >= 0 && static_cast<std::size_t>(code) < names.size() ? names[static_cast<std::size_t>(code)]
                                                                      : "GENERAL ERROR";
}

}  // namespace

void check(const Api& api, Status* status) {
    if (status == nullptr) return;
    const int code = api.GetErrorCode(status);
    std::string text = "[ONNXRuntimeError] : " + std::to_string(code) + " : " + name_code(code) + " : ";
    text += api.GetErrorMessage(status);
    api.ReleaseStatus(status);
    throw Failure(text);
}

}  // namespace packager::ort
