// Values of onnxruntime's C API that release themselves, and its errors with the text that Python shows.
#pragma once

#include <exception>
#include <memory>
#include <string>

#include "onnxruntime_api.hpp"

namespace packager::ort {

// An error of onnxruntime: "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : …".
struct Failure : std::exception {
    std::string message;
    explicit Failure(std::string text) : message(std::move(text)) {}
    const char* what() const noexcept override { return message.c_str(); }
};

// Throws Failure unless the status is null.
void check(const Api& api, Status* status);

template <typename Object>
using Handle = std::unique_ptr<Object, void (*)(Object*)>;

// Calls a function whose last argument receives a new object.
template <typename Object, typename Function, typename... Arguments>
Handle<Object> make(const Api& api, void (*release)(Object*), Function function, Arguments... arguments) {
    Object* object = nullptr;
    check(api, function(arguments..., &object));
    return {object, release};
}

}  // namespace packager::ort
