#include "session.hpp"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <future>

#include "cores.hpp"
#include "error.hpp"
#include "heap.hpp"
#include "library.hpp"
#include "onnx_wire.hpp"
#include "ort_handles.hpp"

namespace packager {
namespace {

using ort::Handle;

constexpr std::size_t small_model = std::size_t{4} << 20U;

struct ElementType {
    int number;  // of ONNXTensorElementDataType
    DType dtype;
};
constexpr ElementType element_types[] = {
    {1, DType::float32}, {2, DType::uint8},   {3, DType::int8},      {4, DType::uint16},   {5, DType::int16},
    {6, DType::int32},   {7, DType::int64},   {9, DType::boolean},   {10, DType::float16}, {11, DType::float64},
    {12, DType::uint32}, {13, DType::uint64}, {16, DType::bfloat16},
};

DType find_dtype(int number) {
    for (const ElementType& type : element_types) {
        if (type.number == number) return type.dtype;
    }
    throw ort::Failure("the element type " + std::to_string(number) + " is not one that a bundle can have");
}

int find_number(DType dtype) {
    for (const ElementType& type : element_types) {
        if (type.dtype == dtype) return type.number;
    }
    return 0;
}

// 0 lets onnxruntime choose; it counts the cores of the machine, whatever quota a container has.
int choose_threads(int threads) {
    if (threads > 0) return threads;
    const int usable = count_usable_cores();
    return usable < count_cores() ? usable : 0;
}

std::string get_first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

Array convert_to_bfloat16(const Array& floats) {
    const Array aligned = align(floats);
    auto [converted, bytes] = allocate(DType::bfloat16, floats.shape);
    const auto* const source = reinterpret_cast<const float*>(aligned.data);
    auto* const target = reinterpret_cast<std::uint16_t*>(bytes);
    std::transform(source, source + aligned.size(), target, float_to_bfloat16);
    return converted;
}

// A value that refers to an array's memory, which must outlive it.
Handle<ort::Value> refer_to(const ort::Api& api, const ort::MemoryInfo* memory, const Array& array, int number) {
    static std::byte nothing{};
    void* const data = array.data != nullptr ? const_cast<std::byte*>(array.data) : &nothing;
    return ort::make<ort::Value>(api, api.ReleaseValue, api.CreateTensorWithDataAsOrtValue, memory, data, array.bytes(),
                                 array.shape.data(), array.shape.size(), number);
}

const BundleFile& find_file(const Bundle& bundle, const std::string& file) {
    const auto entry = bundle.archive.find(file);
    if (entry == bundle.archive.end()) throw integrity_failed(bundle.path, file + " is missing");
    return entry->second;
}

// The name that leads to the open executable; empty if there is none, or if it leads to a different file.
std::string find_own_path(int descriptor) {
    const std::string path = "proc/self/fd/" + std::to_string(descriptor);
    struct stat named{}, opened{};
    if (stat(("/" + path).c_str(), &named) != 0 || fstat(descriptor, &opened) != 0) return "";
    return named.st_dev == opened.st_dev && named.st_ino == opened.st_ino ? path : "";
}

// Lets the pages of a mapped range go, which can be read again.
void forget_pages(Span content) {
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto start = reinterpret_cast<std::uintptr_t>(content.data);
    const std::uintptr_t first = (start + page - 1) / page * page, last = (start + content.size) / page * page;
    if (first < last) madvise(const_cast<std::byte*>(content.data) + (first - start), last - first, MADV_DONTNEED);
}

}  // namespace

struct Session::State {
    const ort::Api* api = nullptr;
    Handle<ort::Env> env{nullptr, nullptr};
    Handle<ort::MemoryInfo> memory{nullptr, nullptr};
    Handle<ort::Session> session{nullptr, nullptr};
    std::vector<ModelTensor> inputs, outputs;
    std::vector<const char*> output_names;
    bool has_arena = true;
    std::future<void> heap;

    void open_api(const Executable& executable, LibraryCheck& check);
    Handle<ort::SessionOptions> make_options(int threads) const;
    void make_session(Span model, const ort::SessionOptions* options);
    bool make_mapped(const Executable& executable, Span model, std::uint64_t data_offset, int threads);
    void make_copied(Span model, Span data, const std::vector<ExternalTensor>& tensors, int threads);
    void describe();
    ModelTensor describe_tensor(std::string name, ort::TypeInfo* info) const;
    Array take_output(Handle<ort::Value> value) const;
};

void Session::State::open_api(const Executable& executable, LibraryCheck& check) {
    setenv("ORT_DISABLE_TELEMETRY", "1", 1);  // before the library is loaded: it sends data otherwise
    void* const function = load_library(executable, check);
    heap = prepare_heap();
    const auto* const base = reinterpret_cast<const ort::ApiBase* (*)()>(function)();
    api = base->GetApi(ort::api_version);
    if (api == nullptr) throw ort::Failure(std::string("version ") + base->GetVersionString() + " is too old");
    env = ort::make<ort::Env>(*api, api->ReleaseEnv, api->CreateEnv, ort::fatal, "packager");
    memory = ort::make<ort::MemoryInfo>(*api, api->ReleaseMemoryInfo, api->CreateCpuMemoryInfo, ort::device_allocator,
                                        ort::default_memory);
}

Handle<ort::SessionOptions> Session::State::make_options(int threads) const {
    auto options = ort::make<ort::SessionOptions>(*api, api->ReleaseSessionOptions, api->CreateSessionOptions);
    ort::check(*api, api->SetSessionLogSeverityLevel(options.get(), ort::fatal));
    ort::check(*api, api->SetIntraOpNumThreads(options.get(), threads));
    // The bytes of a different format would be read without the checks of external weights.
    ort::check(*api, api->AddSessionConfigEntry(options.get(), "session.load_model_format", "ONNX"));
    if (!has_arena) ort::check(*api, api->DisableCpuMemArena(options.get()));
    // Threads that wait for work sleep: the cores are needed to compare the weights.
    ort::check(*api, api->AddSessionConfigEntry(options.get(), "session.intra_op.allow_spinning", "0"));
    return options;
}

void Session::State::make_session(Span model, const ort::SessionOptions* options) {
    session = ort::make<ort::Session>(*api, api->ReleaseSession, api->CreateSessionFromArray, env.get(), model.data,
                                      model.size, options);
}

// Lets onnxruntime map the weights from the executable; returns false if it cannot open that path.
bool Session::State::make_mapped(const Executable& executable, Span model, std::uint64_t data_offset, int threads) {
    const std::string path = find_own_path(executable.descriptor);
    if (path.empty()) return false;
    const std::string moved = move_tensors(model, path, data_offset);
    const auto options = make_options(threads);
    constexpr const char* folder = "session.model_external_initializers_file_folder_path";
    ort::check(*api, api->AddSessionConfigEntry(options.get(), folder, "/"));
    try {
        make_session({reinterpret_cast<const std::byte*>(moved.data()), moved.size()}, options.get());
    } catch (const ort::Failure& error) {
        std::string text = error.message;
        std::transform(text.begin(), text.end(), text.begin(), [](char letter) {
            return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter + 32) : letter;
        });
        if (text.find("external data") == std::string::npos) throw;
        return false;
    }
    return true;
}

// Gives onnxruntime the weights in memory, which it copies.
void Session::State::make_copied(Span model, Span data, const std::vector<ExternalTensor>& tensors, int threads) {
    std::vector<Handle<ort::Value>> values;
    std::vector<const char*> names;
    std::vector<const ort::Value*> pointers;
    for (const ExternalTensor& tensor : tensors) {
        Array array;
        array.dtype = find_dtype(tensor.data_type);
        array.shape = tensor.shape;
        array.data = data.data + tensor.offset;
        values.push_back(refer_to(*api, memory.get(), array, tensor.data_type));
        names.push_back(tensor.name.c_str());
        pointers.push_back(values.back().get());
    }
    const auto options = make_options(threads);
    if (!tensors.empty()) {
        ort::check(*api, api->AddExternalInitializers(options.get(), names.data(), pointers.data(), names.size()));
    }
    make_session(model, options.get());
    if (data.size > 0) forget_pages(data);
}

ModelTensor Session::State::describe_tensor(std::string name, ort::TypeInfo* info) const {
    const Handle<ort::TypeInfo> type(info, api->ReleaseTypeInfo);
    const ort::TensorInfo* tensor = nullptr;
    ort::check(*api, api->CastTypeInfoToTensorInfo(type.get(), &tensor));
    if (tensor == nullptr) throw ort::Failure(name + " is not a tensor");
    int number = 0;
    std::size_t rank = 0;
    ort::check(*api, api->GetTensorElementType(tensor, &number));
    ort::check(*api, api->GetDimensionsCount(tensor, &rank));
    Shape sizes(rank);
    std::vector<const char*> dim_names(rank);
    ort::check(*api, api->GetDimensions(tensor, sizes.data(), rank));
    ort::check(*api, api->GetSymbolicDimensions(tensor, dim_names.data(), rank));
    ModelTensor described{std::move(name), find_dtype(number), {}};
    for (std::size_t index = 0; index < rank; ++index) {
        const bool is_named = dim_names[index] != nullptr && *dim_names[index] != '\0';
        if (sizes[index] >= 0)
            described.shape.emplace_back(sizes[index]);
        else if (is_named)
            described.shape.emplace_back(std::string(dim_names[index]));
        else
            described.shape.emplace_back(AnySize{});
    }
    return described;
}

void Session::State::describe() {
    ort::Allocator* allocator = nullptr;
    ort::check(*api, api->GetAllocatorWithDefaultOptions(&allocator));
    const auto list = [&](auto get_count, auto get_name, auto get_type) {
        std::size_t count = 0;
        ort::check(*api, get_count(session.get(), &count));
        std::vector<ModelTensor> tensors;
        for (std::size_t index = 0; index < count; ++index) {
            char* text = nullptr;
            ort::check(*api, get_name(session.get(), index, allocator, &text));
            std::string name(text);
            ort::check(*api, api->AllocatorFree(allocator, text));
            ort::TypeInfo* info = nullptr;
            ort::check(*api, get_type(session.get(), index, &info));
            tensors.push_back(describe_tensor(std::move(name), info));
        }
        return tensors;
    };
    inputs = list(api->SessionGetInputCount, api->SessionGetInputName, api->SessionGetInputTypeInfo);
    outputs = list(api->SessionGetOutputCount, api->SessionGetOutputName, api->SessionGetOutputTypeInfo);
    for (const ModelTensor& tensor : outputs) output_names.push_back(tensor.name.c_str());
}

Array Session::State::take_output(Handle<ort::Value> value) const {
    int type = 0, number = 0;
    ort::check(*api, api->GetValueType(value.get(), &type));
    if (type != ort::tensor_type) throw ort::Failure("an output is not a tensor");
    const auto info = ort::make<ort::TensorInfo>(*api, api->ReleaseTensorInfo, api->GetTensorTypeAndShape, value.get());
    std::size_t rank = 0;
    ort::check(*api, api->GetTensorElementType(info.get(), &number));
    ort::check(*api, api->GetDimensionsCount(info.get(), &rank));
    Array array;
    array.dtype = find_dtype(number);
    array.shape.resize(rank);
    ort::check(*api, api->GetDimensions(info.get(), array.shape.data(), rank));
    void* data = nullptr;
    ort::check(*api, api->GetTensorMutableData(value.get(), &data));
    array.data = static_cast<const std::byte*>(data);
    array.owner = std::shared_ptr<ort::Value>(value.release(), api->ReleaseValue);
    return array;
}

Session::Session(const Executable& executable, LibraryCheck& library, const Bundle& bundle,
                 const SessionSettings& settings)
    : state_(std::make_unique<State>()) {
    const auto& [archive, seal, config, path] = bundle;
    std::future<void> data_check;  // where there can be no more threads, it runs when its result is asked for
    try {
        check_file(archive, seal, config.model, path);
        const Span model = find_file(bundle, config.model).content;
        const std::string data_name = config.data.value_or("");
        const BundleFile* const data = config.data ? &find_file(bundle, data_name) : nullptr;
        const auto tensors = find_external_tensors(model, config.data, data != nullptr ? data->content.size : 0);
        if (data != nullptr) {
            data_check = std::async(check_file, std::cref(archive), std::cref(seal), data_name, path);
        }
        const int threads = choose_threads(settings.threads);
        // Runs of a small model wait for each other at the arena's lock, and malloc has one for each thread.
        state_->has_arena =
            !settings.is_shared || model.size + (data != nullptr ? data->content.size : 0) > small_model;
        state_->open_api(executable, library);
        const bool is_mapped =
            data != nullptr && !tensors.empty() && state_->make_mapped(executable, model, data->offset, threads);
        if (!is_mapped) state_->make_copied(model, data != nullptr ? data->content : Span{}, tensors, threads);
        state_->describe();
        if (data_check.valid()) data_check.get();
    } catch (const std::exception&) {
        if (data_check.valid()) data_check.get();  // wrong weights explain whatever went wrong
        try {
            throw;
        } catch (const WeightsUnsafe& error) {
            throw not_a_bundle(path, config.model + ": " + error.message);
        } catch (const ort::Failure& error) {
            throw backend_unavailable(path, "onnxruntime: " + config.model + ": " + get_first_line(error.message),
                                      "use the onnxruntime it was built with");
        }
    }
}

// The process ends after its session: releasing it would wait for onnxruntime's threads and free each of its blocks.
// NOLINTNEXTLINE(bugprone-unused-return-value)
Session::~Session() { static_cast<void>(state_.release()); }

Arrays Session::run(const Arrays& inputs) const {
    const ort::Api& api = *state_->api;
    std::vector<Array> kept;  // their memory is used until the model has run
    std::vector<Handle<ort::Value>> values;
    std::vector<const char*> names;
    std::vector<const ort::Value*> pointers;
    try {
        for (const ModelTensor& tensor : state_->inputs) {
            const Array* const array = find(inputs, tensor.name);
            if (array == nullptr) throw ort::Failure("the input " + tensor.name + " is missing");
            const bool is_converted = tensor.dtype == DType::bfloat16 && array->dtype == DType::float32;
            kept.push_back(is_converted ? convert_to_bfloat16(*array) : align(*array));
            values.push_back(refer_to(api, state_->memory.get(), kept.back(), find_number(kept.back().dtype)));
            names.push_back(tensor.name.c_str());
            pointers.push_back(values.back().get());
        }
        const std::size_t count = state_->outputs.size();
        std::vector<ort::Value*> results(count);
        ort::check(api, api.Run(state_->session.get(), nullptr, names.data(), pointers.data(), names.size(),
                                state_->output_names.data(), count, results.data()));
        std::vector<Handle<ort::Value>> owned;
        owned.reserve(count);
        for (ort::Value* result : results) owned.emplace_back(result, api.ReleaseValue);
        Arrays outputs;
        for (std::size_t index = 0; index < count; ++index) {
            outputs.emplace_back(state_->outputs[index].name, state_->take_output(std::move(owned[index])));
        }
        return outputs;
    } catch (const ort::Failure& error) {
        throw inference_failed(error.message);
    }
}

const std::vector<ModelTensor>& Session::inputs() const { return state_->inputs; }
const std::vector<ModelTensor>& Session::outputs() const { return state_->outputs; }

}  // namespace packager
