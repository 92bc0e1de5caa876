//! The functions as methods of tensors, with their derivatives on the tape.

use super::functions::Kind;
use super::{Backward, BackwardIn, Forward, In, check_cap, check_finite};
use crate::engine::run1;
use crate::tape::Node;
use crate::{Result, Tensor};

impl Tensor {
    fn activation(&self, name: &'static str, kind: Kind) -> Result<Tensor> {
        let y = run1(&Forward(kind), In { x: self })?;
        let x = self.detach();
        Ok(Node::record(name, &[self], y, move |dy| {
            Ok(vec![Some(run1(&Backward(kind), BackwardIn { x: &x, dy: &dy })?)])
        }))
    }

    /// `x / (1 + e^-x)`, element by element (Elfwing et al. 2017, arXiv:1702.03118).
    pub fn silu(&self) -> Result<Tensor> {
        self.activation("silu", Kind::Silu)
    }

    /// `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`: the form of GPT-2, `gelu_new` in Hugging Face
    /// (Hendrycks & Gimpel 2016, arXiv:1606.08415).
    pub fn gelu(&self) -> Result<Tensor> {
        self.activation("gelu", Kind::Gelu)
    }

    /// `x/2 (1 + erf(x / sqrt 2))`: the exact form, `gelu` in PyTorch (arXiv:1606.08415).
    pub fn gelu_erf(&self) -> Result<Tensor> {
        self.activation("gelu_erf", Kind::GeluErf)
    }

    /// `x / (1 + e^(-1.702 x))`: the form of CLIP, `quick_gelu` in Hugging Face (arXiv:1606.08415).
    pub fn quick_gelu(&self) -> Result<Tensor> {
        self.activation("quick_gelu", Kind::QuickGelu)
    }

    /// `1 / (1 + e^-x)`, element by element.
    pub fn sigmoid(&self) -> Result<Tensor> {
        self.activation("sigmoid", Kind::Sigmoid)
    }

    /// `cap * tanh(self / cap)`, element by element: values stay within the cap, and small ones pass almost unchanged
    /// (logits of Gemma 2, arXiv:2408.00118). Derivative `1 - tanh^2(self / cap)`.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let logits = Tensor::from_f32(&Device::cpu(), &[3], &[-1e6, 0.0, 1e6])?;
    /// assert_eq!(logits.softcap(30.0)?.to_f32()?, [-30.0, 0.0, 30.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The cap is not a positive number.
    pub fn softcap(&self, cap: f32) -> Result<Tensor> {
        check_cap("softcap", cap)?;
        self.activation("softcap", Kind::Softcap(cap))
    }

    /// `e^x`, element by element: `[..] -> [..]`. Infinite above 88.7. Derivative `e^x`.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let x = Tensor::from_f32(&Device::cpu(), &[2], &[0.0, -1e30])?;
    /// assert_eq!(x.exp()?.to_f32()?, [1.0, 0.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The tensor holds indices.
    pub fn exp(&self) -> Result<Tensor> {
        self.activation("exp", Kind::Exp)
    }

    /// `ln(x + shift)`, element by element: `[..] -> [..]`. Derivative `1 / (x + shift)`.
    ///
    /// It is meant for `x + shift > 0`: at 0 the result is minus infinity, below it is no number.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let x = Tensor::from_f32(&Device::cpu(), &[2], &[0.0, 1.0])?;
    /// let y = x.log_shifted(1.0)?.to_f32()?;
    /// assert_eq!(y[0], 0.0);
    /// assert!((y[1] - 2f32.ln()).abs() < 1e-6);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The tensor holds indices, or the shift is not finite.
    pub fn log_shifted(&self, shift: f32) -> Result<Tensor> {
        check_finite("shift", shift)?;
        self.activation("log_shifted", Kind::Log { shift })
    }

    /// `max(x, 0)`, element by element: `[..] -> [..]`. Derivative 1 above 0, else 0 (Nair & Hinton 2010).
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let x = Tensor::from_f32(&Device::cpu(), &[3], &[-2.0, 0.0, 3.0])?;
    /// assert_eq!(x.relu()?.to_f32()?, [0.0, 0.0, 3.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The tensor holds indices.
    pub fn relu(&self) -> Result<Tensor> {
        self.activation("relu", Kind::Relu)
    }

    /// `min(max(x, 0), 6)`, element by element: `[..] -> [..]` (Howard et al. 2017, arXiv:1704.04861). The derivative is 0
    /// at 0 and at 6.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let x = Tensor::from_f32(&Device::cpu(), &[3], &[-2.0, 3.0, 7.0])?;
    /// assert_eq!(x.relu6()?.to_f32()?, [0.0, 3.0, 6.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The tensor holds indices.
    pub fn relu6(&self) -> Result<Tensor> {
        self.activation("relu6", Kind::Relu6)
    }

    /// `ln(1 + e^x)`, element by element: `[..] -> [..]`, computed as `max(x, 0) + ln(1 + e^-|x|)`, which does not
    /// overflow (Dugas et al. 2000). Derivative `1 / (1 + e^-x)`.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let x = Tensor::from_f32(&Device::cpu(), &[3], &[-1e30, 0.0, 1e30])?;
    /// let y = x.softplus()?.to_f32()?;
    /// assert_eq!([y[0], y[2]], [0.0, 1e30]);
    /// assert!((y[1] - 2f32.ln()).abs() < 1e-6);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The tensor holds indices.
    pub fn softplus(&self) -> Result<Tensor> {
        self.activation("softplus", Kind::Softplus)
    }

    /// `(x + shift)^exponent`, element by element: `[..] -> [..]`. Derivative `exponent (x + shift)^(exponent - 1)`.
    ///
    /// It is computed as `e^(exponent ln(x + shift))` and defined for `x + shift > 0` only, whatever the exponent is:
    /// below 0 the result is no number, for exponents like 2 as well.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let x = Tensor::from_f32(&Device::cpu(), &[2], &[0.0, 3.0])?;
    /// let y = x.power(-0.5, 1.0)?.to_f32()?;
    /// assert_eq!(y[0], 1.0);
    /// assert!((y[1] - 0.5).abs() < 1e-6);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The tensor holds indices, or the exponent or the shift is not finite.
    pub fn power(&self, exponent: f32, shift: f32) -> Result<Tensor> {
        check_finite("exponent", exponent)?;
        check_finite("shift", shift)?;
        self.activation("power", Kind::Power { exponent, shift })
    }
}
