// compile FILE.spv…: makes a compute pipeline of each SPIR-V file on the first Vulkan device, and prints a line for each:
// `ok FILE` with what the driver tells of it, as tab-separated NAME=VALUE, or `failed FILE` with the error's number. The files
// have one entry point each, and their resources in descriptor set 0, as naga writes them. Exit code 1 if there is no device.

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan.h>

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BINDINGS = 32, MAX_STATISTICS = 64 };

static PFN_vkGetInstanceProcAddr get_instance_proc;
static VkInstance instance;
static VkDevice device;

#define CALL(name) ((PFN_##name)get_instance_proc(instance, #name))

static void require(int holds, const char *format, ...) {
    if (holds) return;
    va_list arguments;
    va_start(arguments, format);
    fputs("error: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

// What a pipeline needs of a SPIR-V module.
typedef struct {
    uint32_t *words;
    size_t count;
    const char *entry;
    VkDescriptorSetLayoutBinding bindings[MAX_BINDINGS];
    uint32_t binding_count;
} Module;

static Module read_module(const char *path) {
    Module module = {0};
    FILE *file = fopen(path, "rb");
    require(file != NULL, "%s cannot be read", path);
    fseek(file, 0, SEEK_END);
    module.count = (size_t)ftell(file) / 4;
    rewind(file);
    module.words = malloc(module.count * 4);
    require(fread(module.words, 4, module.count, file) == module.count, "%s cannot be read", path);
    fclose(file);
    require(module.count > 5 && module.words[0] == 0x07230203, "%s is not SPIR-V", path);

    // The binding and the storage class of each result id.
    uint32_t ids = module.words[3];
    int *binding = malloc(ids * sizeof *binding), *storage = malloc(ids * sizeof *storage);
    for (uint32_t id = 0; id < ids; id++) binding[id] = storage[id] = -1;
    for (size_t at = 5; at < module.count;) {
        const uint32_t *word = module.words + at;
        uint32_t length = word[0] >> 16;
        require(length > 0 && at + length <= module.count, "%s ends in an instruction", path);
        switch (word[0] & 0xffff) {
        case 15: // OpEntryPoint
            module.entry = (const char *)(word + 3);
            break;
        case 59: // OpVariable
            storage[word[2]] = (int)word[3];
            break;
        case 71: // OpDecorate … Binding
            if (word[2] == 33) binding[word[1]] = (int)word[3];
            break;
        }
        at += length;
    }
    require(module.entry != NULL, "%s has no entry point", path);
    for (uint32_t id = 0; id < ids; id++) {
        if (binding[id] < 0) continue;
        require(module.binding_count < MAX_BINDINGS, "%s has too many bindings", path);
        VkDescriptorType type = VK_DESCRIPTOR_TYPE_SAMPLED_IMAGE;
        if (storage[id] == 2) type = VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER_DYNAMIC;
        if (storage[id] == 12) type = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER;
        module.bindings[module.binding_count++] =
            (VkDescriptorSetLayoutBinding){(uint32_t)binding[id], type, 1, VK_SHADER_STAGE_COMPUTE_BIT, NULL};
    }
    free(binding);
    free(storage);
    return module;
}

static void open_device(void) {
    void *loader = dlopen("libvulkan.so.1", RTLD_NOW);
    require(loader != NULL, "no Vulkan loader: %s", dlerror());
    get_instance_proc = (PFN_vkGetInstanceProcAddr)dlsym(loader, "vkGetInstanceProcAddr");
    VkApplicationInfo application = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO, .apiVersion = VK_API_VERSION_1_3};
    VkInstanceCreateInfo create_instance = {
        .sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO, .pApplicationInfo = &application};
    VkResult result = CALL(vkCreateInstance)(&create_instance, NULL, &instance);
    require(result == VK_SUCCESS, "no Vulkan instance (%d)", result);

    VkPhysicalDevice physical;
    uint32_t count = 1;
    CALL(vkEnumeratePhysicalDevices)(instance, &count, &physical);
    require(count == 1, "no Vulkan device");
    VkPhysicalDeviceProperties properties;
    CALL(vkGetPhysicalDeviceProperties)(physical, &properties);
    fprintf(stderr, "device: %s\n", properties.deviceName);

    // The features that wgpu asks for and that change what is compiled.
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR executables = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR,
        .pipelineExecutableInfo = VK_TRUE};
    VkPhysicalDeviceVulkan13Features features13 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_FEATURES,
                                                   .pNext = &executables,
                                                   .robustImageAccess = VK_TRUE,
                                                   .subgroupSizeControl = VK_TRUE};
    VkPhysicalDeviceVulkan12Features features12 = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                                   .pNext = &features13};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                          .pNext = &features12,
                                          .features = {.robustBufferAccess = VK_TRUE}};
    float priority = 1;
    VkDeviceQueueCreateInfo queue = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO, .queueCount = 1, .pQueuePriorities = &priority};
    const char *extensions[] = {VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME};
    VkDeviceCreateInfo create_device = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                                        .pNext = &features,
                                        .queueCreateInfoCount = 1,
                                        .pQueueCreateInfos = &queue,
                                        .enabledExtensionCount = 1,
                                        .ppEnabledExtensionNames = extensions};
    result = CALL(vkCreateDevice)(physical, &create_device, NULL, &device);
    require(result == VK_SUCCESS, "the device cannot be opened (%d)", result);
}

static void print_statistics(VkPipeline pipeline) {
    VkPipelineInfoKHR info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, .pipeline = pipeline};
    VkPipelineExecutablePropertiesKHR properties = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_PROPERTIES_KHR};
    // A compute pipeline is one executable.
    uint32_t count = 1;
    CALL(vkGetPipelineExecutablePropertiesKHR)(device, &info, &count, &properties);
    if (count == 0) return;
    printf("\tsubgroup size=%u", properties.subgroupSize);

    VkPipelineExecutableInfoKHR executable = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR,
                                              .pipeline = pipeline};
    VkPipelineExecutableStatisticKHR statistics[MAX_STATISTICS];
    for (int i = 0; i < MAX_STATISTICS; i++) {
        statistics[i] = (VkPipelineExecutableStatisticKHR){
            .sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR};
    }
    count = MAX_STATISTICS;
    CALL(vkGetPipelineExecutableStatisticsKHR)(device, &executable, &count, statistics);
    for (uint32_t i = 0; i < count; i++) {
        const VkPipelineExecutableStatisticValueKHR *value = &statistics[i].value;
        printf("\t%s=", statistics[i].name);
        switch (statistics[i].format) {
        case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_BOOL32_KHR:
            printf("%u", value->b32);
            break;
        case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_INT64_KHR:
            printf("%lld", (long long)value->i64);
            break;
        case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_FLOAT64_KHR:
            printf("%g", value->f64);
            break;
        default:
            printf("%llu", (unsigned long long)value->u64);
        }
    }
}

static void compile(const char *path) {
    Module module = read_module(path);
    VkDescriptorSetLayoutCreateInfo create_set = {.sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
                                                  .bindingCount = module.binding_count,
                                                  .pBindings = module.bindings};
    VkDescriptorSetLayout set;
    VkResult result = CALL(vkCreateDescriptorSetLayout)(device, &create_set, NULL, &set);
    require(result == VK_SUCCESS, "%s: no descriptor set layout (%d)", path, result);
    VkPipelineLayoutCreateInfo create_layout = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO, .setLayoutCount = 1, .pSetLayouts = &set};
    VkPipelineLayout layout;
    result = CALL(vkCreatePipelineLayout)(device, &create_layout, NULL, &layout);
    require(result == VK_SUCCESS, "%s: no pipeline layout (%d)", path, result);
    VkShaderModuleCreateInfo create_module = {.sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
                                              .codeSize = module.count * 4,
                                              .pCode = module.words};
    VkShaderModule shader;
    result = CALL(vkCreateShaderModule)(device, &create_module, NULL, &shader);
    VkPipeline pipeline = VK_NULL_HANDLE;
    if (result == VK_SUCCESS) {
        VkComputePipelineCreateInfo create = {
            .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
            .flags = VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR,
            // As wgpu does where a device has subgroups.
            .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                      .flags = VK_PIPELINE_SHADER_STAGE_CREATE_ALLOW_VARYING_SUBGROUP_SIZE_BIT,
                      .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                      .module = shader,
                      .pName = module.entry},
            .layout = layout};
        result = CALL(vkCreateComputePipelines)(device, VK_NULL_HANDLE, 1, &create, NULL, &pipeline);
        CALL(vkDestroyShaderModule)(device, shader, NULL);
    }
    if (result == VK_SUCCESS) {
        printf("ok\t%s", path);
        print_statistics(pipeline);
        CALL(vkDestroyPipeline)(device, pipeline, NULL);
    } else {
        printf("failed\t%s\terror=%d", path, result);
    }
    putchar('\n');
    // A compiler that dies has said what it did before.
    fflush(stdout);
    CALL(vkDestroyPipelineLayout)(device, layout, NULL);
    CALL(vkDestroyDescriptorSetLayout)(device, set, NULL);
    free(module.words);
}

int main(int count, char **paths) {
    open_device();
    for (int i = 1; i < count; i++) compile(paths[i]);
    return 0;
}
