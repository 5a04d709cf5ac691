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
    place = answered(name);
    again = indexOf(refused, "\"" + name + "\":") >= 0;
    if (place == "" && File.exists(home + "proposals" + sep + name + ".tif")) {
        correct(names[i], name, home + "proposals" + sep + name + ".tif", home + "labels" + sep + name + ".tif");
        saved++;
    } else if (again && (endsWith(place, ".tif") || endsWith(place, ".png"))) {
        correct(names[i], name, place, place);
        saved++;
    } else if (again)
        print(place + " was refused, and this macro cannot open it: see refused.json");
}
showMessage("Masks", "" + saved + " saved; no more are awaited in\n" + home);

// What somebody saved of a picture, or "".
function answered(name) {
    all = getFileList(home + "labels");
    for (k = 0; k < all.length; k++) {
        if (startsWith(all[k], name + ".") && lastIndexOf(all[k], ".") == lengthOf(name))
            return home + "labels" + sep + all[k];
    }
    return "";
}

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

// One mask, by hand: from a file, into a file.
function correct(picture, name, from, place) {
    open(watch + sep + "palette.png");
    palette = getImageID();
    setLocation(10, 200);
    open(home + "images" + sep + picture);
    rename("micrograph");
    micrograph = getImageID();
    setLocation(screenWidth / 2, 200);
    open(from);
    rename("mask");
    mask = getImageID();
    setLocation(270, 200);
    run("Add Image...", "image=micrograph x=0 y=0 opacity=" + OPACITY);
    waitForUser("Mask of " + name, "Correct the mask of " + name + ".\nOK saves it, and opens the next.");
    selectImage(mask);
    run("Remove Overlay");
    run("Select None");
    if (endsWith(place, ".png"))
        saveAs("PNG", place);
    else
        saveAs("Tiff", place);
    close();
    selectImage(micrograph);
    close();
    if (isOpen(palette)) {
        selectImage(palette);
        close();
    }
}
