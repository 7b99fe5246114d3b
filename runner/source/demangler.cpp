// The C++ runtime prints the type of an exception that nothing catches, and has 100 kB of code to make its name
// readable. Nothing is left uncaught here: this takes that code's place, and says that there is no readable name.

// NOLINTNEXTLINE(bugprone-reserved-identifier, cert-dcl37-c, cert-dcl51-cpp, readability-identifier-naming)
extern "C" char* __cxa_demangle(const char* /*name*/, char* /*buffer*/, unsigned long* /*size*/, int* status) {
    constexpr int no_memory = -1;
    if (status != nullptr) *status = no_memory;
    return nullptr;
}
