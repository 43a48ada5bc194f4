// hlsl.exe dxc|fxc < LIST: compiles HLSL files with Microsoft's compilers, as wgpu calls them. Runs on Windows or in Wine,
// with dxcompiler.dll or d3dcompiler_47.dll beside it.
//
// Each line of LIST is `FILE ENTRY TARGET`, such as `add.6_0.hlsl add cs_6_0`. Each line that it prints is `ok FILE`, or
// `rejected FILE: ` with the first error. The exit code is 0 if the compiler could be called at all.

#define COBJMACROS
#include <windows.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Of dxcapi.h, what is needed.
static const GUID CLSID_DxcCompiler = {0x73e22d93, 0xe6ce, 0x47f3, {0xb5, 0xbf, 0xf0, 0x66, 0x4f, 0x39, 0xc1, 0xb0}};
static const GUID IID_IDxcCompiler3 = {0x228b4687, 0x5a6a, 0x4730, {0x90, 0x0c, 0x97, 0x02, 0xb2, 0x20, 0x3f, 0x54}};
static const GUID IID_IDxcResult = {0x58346cda, 0xdde7, 0x4497, {0x94, 0x61, 0x6f, 0x87, 0xaf, 0x5e, 0x06, 0x59}};

typedef struct {
    const void *text;
    SIZE_T size;
    UINT encoding;
} DxcBuffer;

typedef struct Blob Blob;
typedef struct {
    HRESULT(STDMETHODCALLTYPE *QueryInterface)(Blob *, REFIID, void **);
    ULONG(STDMETHODCALLTYPE *AddRef)(Blob *);
    ULONG(STDMETHODCALLTYPE *Release)(Blob *);
    void *(STDMETHODCALLTYPE *GetBufferPointer)(Blob *);
    SIZE_T(STDMETHODCALLTYPE *GetBufferSize)(Blob *);
} BlobVtbl;
struct Blob {
    const BlobVtbl *vtbl;
};

typedef struct Result Result;
typedef struct {
    HRESULT(STDMETHODCALLTYPE *QueryInterface)(Result *, REFIID, void **);
    ULONG(STDMETHODCALLTYPE *AddRef)(Result *);
    ULONG(STDMETHODCALLTYPE *Release)(Result *);
    HRESULT(STDMETHODCALLTYPE *GetStatus)(Result *, HRESULT *);
    HRESULT(STDMETHODCALLTYPE *GetResult)(Result *, Blob **);
    HRESULT(STDMETHODCALLTYPE *GetErrorBuffer)(Result *, Blob **);
} ResultVtbl;
struct Result {
    const ResultVtbl *vtbl;
};

typedef struct Compiler Compiler;
typedef struct {
    HRESULT(STDMETHODCALLTYPE *QueryInterface)(Compiler *, REFIID, void **);
    ULONG(STDMETHODCALLTYPE *AddRef)(Compiler *);
    ULONG(STDMETHODCALLTYPE *Release)(Compiler *);
    HRESULT(STDMETHODCALLTYPE *Compile)
    (Compiler *, const DxcBuffer *, LPCWSTR *, UINT32, IUnknown *, REFIID, void **);
} CompilerVtbl;
struct Compiler {
    const CompilerVtbl *vtbl;
};

typedef HRESULT(WINAPI *DxcCreateInstance)(REFIID, REFIID, void **);
typedef HRESULT(WINAPI *D3DCompile)(LPCVOID, SIZE_T, LPCSTR, const void *, void *, LPCSTR, LPCSTR, UINT, UINT, Blob **,
                                    Blob **);

static Compiler *dxc;
static D3DCompile fxc;

// The first line that tells of an error, or the first line.
static void print_error(const char *file, Blob *blob) {
    char *text = blob ? calloc(1, blob->vtbl->GetBufferSize(blob) + 1) : NULL;
    if (text) memcpy(text, blob->vtbl->GetBufferPointer(blob), blob->vtbl->GetBufferSize(blob));
    const char *line = text ? text : "";
    const char *error = strstr(line, "error");
    while (error && error > line && error[-1] != '\n') error--;
    if (error) line = error;
    printf("rejected %s: %.*s\n", file, (int)strcspn(line, "\r\n"), line);
    free(text);
}

static void compile_dxc(const char *file, const char *text, size_t size, const wchar_t *entry, const wchar_t *target) {
    LPCWSTR arguments[] = {L"-E", entry, L"-T", target, L"-HV", L"2018", L"-no-warnings", L"-Ges"};
    DxcBuffer source = {text, size, CP_UTF8};
    Result *result = NULL;
    HRESULT status = dxc->vtbl->Compile(dxc, &source, arguments, sizeof arguments / sizeof *arguments, NULL,
                                        &IID_IDxcResult, (void **)&result);
    if (FAILED(status)) {
        printf("rejected %s: the compiler failed with %#lx\n", file, status);
        return;
    }
    result->vtbl->GetStatus(result, &status);
    if (SUCCEEDED(status)) {
        printf("ok %s\n", file);
    } else {
        Blob *errors = NULL;
        result->vtbl->GetErrorBuffer(result, &errors);
        print_error(file, errors);
        if (errors) errors->vtbl->Release(errors);
    }
    result->vtbl->Release(result);
}

static void compile_fxc(const char *file, const char *text, size_t size, const char *entry, const char *target) {
    const UINT strict = 1 << 11; // D3DCOMPILE_ENABLE_STRICTNESS
    Blob *code = NULL, *errors = NULL;
    if (SUCCEEDED(fxc(text, size, file, NULL, NULL, entry, target, strict, 0, &code, &errors))) {
        printf("ok %s\n", file);
    } else {
        print_error(file, errors);
    }
    if (code) code->vtbl->Release(code);
    if (errors) errors->vtbl->Release(errors);
}

int main(int count, char **arguments) {
    int with_dxc = count == 2 && !strcmp(arguments[1], "dxc");
    if (!with_dxc && !(count == 2 && !strcmp(arguments[1], "fxc"))) {
        fprintf(stderr, "error: say dxc or fxc\n");
        return 2;
    }
    const char *name = with_dxc ? "dxcompiler.dll" : "d3dcompiler_47.dll";
    HMODULE library = LoadLibraryA(name);
    if (!library) {
        fprintf(stderr, "error: %s cannot be loaded (%lu)\n", name, GetLastError());
        return 1;
    }
    if (with_dxc) {
        DxcCreateInstance create = (DxcCreateInstance)(void *)GetProcAddress(library, "DxcCreateInstance");
        if (!create || FAILED(create(&CLSID_DxcCompiler, &IID_IDxcCompiler3, (void **)&dxc))) {
            fprintf(stderr, "error: %s has no compiler\n", name);
            return 1;
        }
    } else {
        fxc = (D3DCompile)(void *)GetProcAddress(library, "D3DCompile");
        if (!fxc) {
            fprintf(stderr, "error: %s has no D3DCompile\n", name);
            return 1;
        }
    }
    char file[512], entry[128], target[16];
    while (scanf("%511s %127s %15s", file, entry, target) == 3) {
        FILE *source = fopen(file, "rb");
        if (!source) {
            fprintf(stderr, "error: %s cannot be read\n", file);
            return 1;
        }
        fseek(source, 0, SEEK_END);
        size_t size = ftell(source);
        rewind(source);
        char *text = malloc(size + 1);
        size = fread(text, 1, size, source);
        fclose(source);
        if (with_dxc) {
            wchar_t wide_entry[128], wide_target[16];
            mbstowcs(wide_entry, entry, 128);
            mbstowcs(wide_target, target, 16);
            compile_dxc(file, text, size, wide_entry, wide_target);
        } else {
            compile_fxc(file, text, size, entry, target);
        }
        fflush(stdout);
        free(text);
    }
    return 0;
}
