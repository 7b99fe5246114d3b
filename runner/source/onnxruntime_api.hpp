// The functions of onnxruntime's C API that the runner calls, by their place in its table.
//
// The places are those of `struct OrtApi` in onnxruntime_c_api.h of version 1.21.0 (Debian's libonnxruntime-dev
// 1.21.0+dfsg-1; microsoft/onnxruntime, include/onnxruntime/core/session, MIT licence). The table only grows: every
// later version has them at the same places. No header of onnxruntime is in its wheel.
#pragma once

#include <cstddef>
#include <cstdint>

namespace packager::ort {

struct Env;
struct Status;
struct MemoryInfo;
struct Session;
struct Value;
struct TypeInfo;
struct TensorInfo;
struct SessionOptions;
struct RunOptions;
struct Allocator;

constexpr std::uint32_t api_version = 21;
constexpr int fatal = 4;               // of OrtLoggingLevel
constexpr int device_allocator = 0;    // of OrtAllocatorType
constexpr int default_memory = 0;      // of OrtMemType
constexpr int tensor_type = 1;         // of ONNXType

// A null status is success. Functions that release take a null pointer too.
struct Api {
    const void* gap_0[1];
    int (*GetErrorCode)(const Status*);
    const char* (*GetErrorMessage)(const Status*);
    Status* (*CreateEnv)(int log_level, const char* log_id, Env**);
    const void* gap_4[4];
    Status* (*CreateSessionFromArray)(const Env*, const void* model, std::size_t size, const SessionOptions*,
                                      Session**);
    Status* (*Run)(Session*, const RunOptions*, const char* const* input_names, const Value* const* inputs,
                   std::size_t input_count, const char* const* output_names, std::size_t output_count, Value** outputs);
    Status* (*CreateSessionOptions)(SessionOptions**);
    const void* gap_11[8];
    Status* (*DisableCpuMemArena)(SessionOptions*);
    const void* gap_20[2];
    Status* (*SetSessionLogSeverityLevel)(SessionOptions*, int level);
    const void* gap_23[1];
    Status* (*SetIntraOpNumThreads)(SessionOptions*, int threads);
    const void* gap_25[5];
    Status* (*SessionGetInputCount)(const Session*, std::size_t*);
    Status* (*SessionGetOutputCount)(const Session*, std::size_t*);
    const void* gap_32[1];
    Status* (*SessionGetInputTypeInfo)(const Session*, std::size_t index, TypeInfo**);
    Status* (*SessionGetOutputTypeInfo)(const Session*, std::size_t index, TypeInfo**);
    const void* gap_35[1];
    Status* (*SessionGetInputName)(const Session*, std::size_t index, Allocator*, char**);
    Status* (*SessionGetOutputName)(const Session*, std::size_t index, Allocator*, char**);
    const void* gap_38[11];
    Status* (*CreateTensorWithDataAsOrtValue)(const MemoryInfo*, void* data, std::size_t bytes,
                                              const std::int64_t* shape, std::size_t rank, int element_type, Value**);
    const void* gap_50[1];
    Status* (*GetTensorMutableData)(Value*, void**);
    const void* gap_52[3];
    Status* (*CastTypeInfoToTensorInfo)(const TypeInfo*, const TensorInfo**);
    const void* gap_56[4];
    Status* (*GetTensorElementType)(const TensorInfo*, int*);
    Status* (*GetDimensionsCount)(const TensorInfo*, std::size_t*);
    Status* (*GetDimensions)(const TensorInfo*, std::int64_t* sizes, std::size_t rank);
    Status* (*GetSymbolicDimensions)(const TensorInfo*, const char** names, std::size_t rank);
    const void* gap_64[1];
    Status* (*GetTensorTypeAndShape)(const Value*, TensorInfo**);
    const void* gap_66[1];
    Status* (*GetValueType)(const Value*, int*);
    const void* gap_68[1];
    Status* (*CreateCpuMemoryInfo)(int allocator, int memory, MemoryInfo**);
    const void* gap_70[6];
    Status* (*AllocatorFree)(Allocator*, void*);
    const void* gap_77[1];
    Status* (*GetAllocatorWithDefaultOptions)(Allocator**);
    const void* gap_79[13];
    void (*ReleaseEnv)(Env*);
    void (*ReleaseStatus)(Status*);
    void (*ReleaseMemoryInfo)(MemoryInfo*);
    void (*ReleaseSession)(Session*);
    void (*ReleaseValue)(Value*);
    const void* gap_97[1];
    void (*ReleaseTypeInfo)(TypeInfo*);
    void (*ReleaseTensorInfo)(TensorInfo*);
    void (*ReleaseSessionOptions)(SessionOptions*);
    const void* gap_101[29];
    Status* (*AddSessionConfigEntry)(SessionOptions*, const char* key, const char* value);
    const void* gap_131[79];
    Status* (*AddExternalInitializers)(SessionOptions*, const char* const* names, const Value* const* values,
                                       std::size_t count);
};

constexpr std::size_t place = sizeof(void*);
static_assert(offsetof(Api, CreateEnv) == 3 * place);
static_assert(offsetof(Api, CreateSessionFromArray) == 8 * place);
static_assert(offsetof(Api, DisableCpuMemArena) == 19 * place);
static_assert(offsetof(Api, SetSessionLogSeverityLevel) == 22 * place);
static_assert(offsetof(Api, SetIntraOpNumThreads) == 24 * place);
static_assert(offsetof(Api, SessionGetInputCount) == 30 * place);
static_assert(offsetof(Api, SessionGetInputTypeInfo) == 33 * place);
static_assert(offsetof(Api, SessionGetInputName) == 36 * place);
static_assert(offsetof(Api, CreateTensorWithDataAsOrtValue) == 49 * place);
static_assert(offsetof(Api, GetTensorMutableData) == 51 * place);
static_assert(offsetof(Api, CastTypeInfoToTensorInfo) == 55 * place);
static_assert(offsetof(Api, GetTensorElementType) == 60 * place);
static_assert(offsetof(Api, GetTensorTypeAndShape) == 65 * place);
static_assert(offsetof(Api, GetValueType) == 67 * place);
static_assert(offsetof(Api, CreateCpuMemoryInfo) == 69 * place);
static_assert(offsetof(Api, AllocatorFree) == 76 * place);
static_assert(offsetof(Api, GetAllocatorWithDefaultOptions) == 78 * place);
static_assert(offsetof(Api, ReleaseEnv) == 92 * place);
static_assert(offsetof(Api, ReleaseTypeInfo) == 98 * place);
static_assert(offsetof(Api, AddSessionConfigEntry) == 130 * place);
static_assert(offsetof(Api, AddExternalInitializers) == 210 * place);

// What OrtGetApiBase returns.
struct ApiBase {
    const Api* (*GetApi)(std::uint32_t version);
    const char* (*GetVersionString)();
};

}  // namespace packager::ort
