//! What a WGSL file declares: its entry points and the variants of each.
//!
//! Plain data, without wgpu: the shader tests and `mixlora ops list` read it in every build.

/// One `.wgsl` file under `shaders/`.
#[derive(Debug)]
pub struct Shader {
    /// File name without the ending.
    pub name: &'static str,
    /// The text.
    pub source: &'static str,
    /// The fields of its `Params`, as `params!` declares them for the host.
    pub params: &'static [Field],
    /// Entry points.
    pub entries: &'static [Entry],
}

/// One compute entry point.
#[derive(Debug)]
pub struct Entry {
    /// Name of the WGSL function.
    pub name: &'static str,
    /// What may be compiled: the shader tests translate each of them to each of its back ends.
    pub variants: &'static [Variant],
}

/// One way to compile an entry point.
#[derive(Debug)]
pub struct Variant {
    /// Short name, for tables and for forcing it in tests.
    pub name: &'static str,
    /// Constants of the prelude. Dispatches may use other values of the same constants.
    pub consts: &'static [(&'static str, u32)],
    /// Fragments of `shaders/common/` that go in front of the file.
    pub parts: &'static [&'static str],
    /// Back ends on which this may be chosen.
    pub backends: Backends,
    /// Bytes of workgroup memory that these constants take.
    pub workgroup_bytes: u32,
}

/// One field of the `Params` of a shader, as the host lays it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Its name in the file.
    pub name: &'static str,
    /// Its type in the file: `u32` or `f32`.
    pub kind: &'static str,
    /// Bytes in front of it.
    pub offset: usize,
    /// Bytes that it takes.
    pub size: usize,
}

/// The parameters of a kernel, declared by `params!`.
pub(crate) trait Parameters: bytemuck::NoUninit {
    /// What the kernel is given.
    fn bytes(&self) -> &[u8] {
        bytemuck::bytes_of(self)
    }
}

/// Declares the `Params` of a shader with the names, types and order of its file, which `tests/shaders.rs` compares:
/// `params! { struct Params { n: u32, scale: f32 } }`.
macro_rules! params {
    (struct $name:ident { $($field:ident: $kind:ident),+ $(,)? }) => {
        #[repr(C)]
        #[derive(Clone, Copy, Default, bytemuck::NoUninit)]
        struct $name { $($field: $kind),+ }

        impl $name {
            /// In order.
            const FIELDS: &'static [$crate::device::Field] = &[$($crate::device::Field {
                name: stringify!($field),
                kind: stringify!($kind),
                offset: std::mem::offset_of!($name, $field),
                size: size_of::<$kind>(),
            }),+];
        }

        impl $crate::device::Parameters for $name {}
    };
}
pub(crate) use params;

/// Shader languages that a variant can be translated to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backends {
    pub spirv: bool,
    pub msl: bool,
    pub hlsl: bool,
}

/// Vulkan, Metal and DX12.
pub const PORTABLE: Backends = Backends { spirv: true, msl: true, hlsl: true };

/// Where cooperative matrices of 8 x 8 exist.
pub const COOP_8: Backends = Backends { hlsl: false, ..PORTABLE };

/// Where those of 16 x 16 exist.
pub const COOP_16: Backends = Backends { spirv: true, msl: false, hlsl: false };

impl Shader {
    /// The entry of that name.
    pub fn entry(&self, name: &str) -> Option<&'static Entry> {
        self.entries.iter().find(|e| e.name == name)
    }
}

/// Bytes that the `Params` of a kernel may take.
pub const MAX_PARAM_BYTES: usize = 128;

/// The line of constants that goes in front of a shader, and the declaration of its parameters `p`.
pub(crate) fn prelude(consts: &[(&str, u32)], immediates: bool) -> String {
    let mut text = String::new();
    for (name, value) in consts {
        text += &format!("const {name}: u32 = {value}u; ");
    }
    text += if immediates {
        "var<immediate> p: Params;\n"
    } else {
        "@group(1) @binding(0) var<uniform> p: Params;\n"
    };
    text
}

impl Variant {
    /// The whole text of this variant of a shader.
    pub fn text(&self, shader: &Shader, immediates: bool) -> String {
        source(shader, self.consts, self.parts, immediates)
    }
}

pub(crate) fn source(shader: &Shader, consts: &[(&str, u32)], parts: &[&str], immediates: bool) -> String {
    let lines = parts.iter().copied().chain([shader.source]).flat_map(str::lines);
    // Extensions are enabled before anything is declared.
    let mut text = String::new();
    let mut rest = prelude(consts, immediates);
    for line in lines {
        let place = if line.starts_with("enable ") { &mut text } else { &mut rest };
        *place += line;
        place.push('\n');
    }
    text + &rest
}
