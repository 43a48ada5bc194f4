// What the page and Deno have in common: trains under each variant of the convolutions that runs without subgroups.

export const VARIANTS = ["direct", "workgroup"];

// `load(name)` gives the bytes of a file, `save(name, bytes)` takes those of a result.
export async function check(thawline, load, save) {
    const encode = (value) => new TextEncoder().encode(JSON.stringify(value));
    try {
        for (const variant of VARIANTS) {
            const weights = await load("weights.safetensors");
            const batch = await load("batch.safetensors");
            const trained = await thawline.train(weights, batch, variant);
            await save(`${variant}.json`, encode({ device: trained.device, losses: [...trained.losses] }));
            await save(`${variant}.safetensors`, trained.weights);
        }
    } catch (error) {
        await save("error.txt", new TextEncoder().encode(`${error} ${error?.stack ?? ""}`));
    }
    await save("done", new Uint8Array());
}
