//! What of a picture is looked at: options that `run`, `detect`, `bench` and `eval` share.

use fovea::frame::{Roi, Rotation, View};

/// What of a picture is looked at instead of what a pipeline file says.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct ViewArgs {
    /// Look at this region only: x,y,width,height in pixels of the picture, or with a decimal point in parts of it
    /// (0,0.25,1.0,0.5). Boxes are of the whole picture all the same.
    #[arg(long, value_name = "X,Y,W,H")]
    roi: Option<Roi>,
    /// Turn the picture, or its region, clockwise before the network sees it: 0, 90, 180 or 270. Boxes are of the picture as it
    /// was.
    #[arg(long, value_name = "DEGREES")]
    rotate: Option<Rotation>,
}

impl ViewArgs {
    /// The view: these where they say something, else that of `file`.
    pub(super) fn over(self, file: View) -> View {
        View { roi: self.roi.or(file.roi), rotation: self.rotate.unwrap_or(file.rotation) }
    }
}
