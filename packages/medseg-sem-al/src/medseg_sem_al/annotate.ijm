// Correct masks in ImageJ or Fiji: Plugins > Macros > Run..., and choose this file, where it lies.
// Each mask that is awaited is opened with its micrograph over it, and beside them the colours of the classes: take one
// by the picker, draw, and press OK. The mask is saved where the loop waits for it, and the next is opened. One that was
// refused is opened again as you saved it. Esc ends, and saves nothing of the mask that is open.

var OPACITY = 40; // of the micrograph over the mask, in per cent; Image > Overlay > Hide Overlay shows the mask alone

var sep = File.separator;
var home = "";
var watch = "";

watch = File.getParent(getInfo("macro.filepath"));
if (!File.exists(watch + sep + "palette.png"))
    watch = getDirectory("The folder in which palette.png and round_00 are");
home = newest();
refused = "";
if (File.exists(home + "refused.json"))
    refused = File.openAsString(home + "refused.json");
names = getFileList(home + "images");
saved = 0;
for (i = 0; i < names.length; i++) {
    name = substring(names[i], 0, lastIndexOf(names[i], "."));
    base = home + "labels" + sep + name;
    missing = (!File.exists(base + ".tif") && !File.exists(base + ".png") && !File.exists(base + ".zip"));
    if (missing || indexOf(refused, "\"" + name + "\":") >= 0) {
        correct(names[i], name, base + ".tif");
        saved++;
    }
}
showMessage("Masks", "" + saved + " saved; no more are awaited in\n" + home);

// The last round that has asked, with a separator behind it.
function newest() {
    last = -1;
    all = getFileList(watch);
    for (i = 0; i < all.length; i++) {
        folder = replace(all[i], "/", "");
        if (startsWith(folder, "round_") && File.exists(watch + sep + folder + sep + "selection.json")) {
            number = parseInt(substring(folder, 6));
            if (number > last) {
                last = number;
                found = watch + sep + folder + sep;
            }
        }
    }
    if (last < 0)
        exit("No round has asked yet in\n" + watch);
    return found;
}

// One mask, by hand.
function correct(file, name, place) {
    open(watch + sep + "palette.png");
    palette = getImageID();
    setLocation(10, 200);
    open(home + "images" + sep + file);
    rename("micrograph of " + name);
    micrograph = getImageID();
    setLocation(screenWidth / 2, 200);
    if (File.exists(place))
        open(place);
    else
        open(home + "proposals" + sep + name + ".tif");
    mask = getImageID();
    setLocation(270, 200);
    rename("mask of " + name);
    run("Add Image...", "image=[micrograph of " + name + "] x=0 y=0 opacity=" + OPACITY);
    waitForUser("Mask of " + name, "Correct the mask. OK saves it, and opens the next.");
    selectImage(mask);
    run("Remove Overlay");
    run("Select None");
    saveAs("Tiff", place);
    close();
    selectImage(micrograph);
    close();
    if (isOpen(palette)) {
        selectImage(palette);
        close();
    }
}
