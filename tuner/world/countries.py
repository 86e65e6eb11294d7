"""Real countries, each with its real capital and another real city of the same country.

Countries whose capital is disputed, shared between cities, about to move, or named after the
country are left out, and so are names that need an article ("the Netherlands").
"""

_TABLE = """
Afghanistan|Kabul|Kandahar
Albania|Tirana|Durres
Algeria|Algiers|Oran
Angola|Luanda|Huambo
Argentina|Buenos Aires|Cordoba
Armenia|Yerevan|Gyumri
Aruba|Oranjestad|San Nicolas
Australia|Canberra|Sydney
Austria|Vienna|Graz
Azerbaijan|Baku|Ganja
Bahrain|Manama|Muharraq
Bangladesh|Dhaka|Chittagong
Barbados|Bridgetown|Speightstown
Belarus|Minsk|Gomel
Belgium|Brussels|Antwerp
Belize|Belmopan|Dangriga
Benin|Porto-Novo|Cotonou
Bhutan|Thimphu|Paro
Bosnia and Herzegovina|Sarajevo|Mostar
Botswana|Gaborone|Francistown
Brazil|Brasilia|Salvador
Britain|London|Manchester
Bulgaria|Sofia|Plovdiv
Burkina Faso|Ouagadougou|Koudougou
Burundi|Gitega|Bujumbura
Cambodia|Phnom Penh|Battambang
Cameroon|Yaounde|Douala
Canada|Ottawa|Toronto
Cape Verde|Praia|Mindelo
Chad|N'Djamena|Moundou
Chile|Santiago|Valparaiso
China|Beijing|Shanghai
Colombia|Bogota|Medellin
Costa Rica|San Jose|Alajuela
Croatia|Zagreb|Rijeka
Cuba|Havana|Holguin
Cyprus|Nicosia|Limassol
Czechia|Prague|Brno
Denmark|Copenhagen|Aarhus
Dominica|Roseau|Portsmouth
East Timor|Dili|Baucau
Ecuador|Quito|Guayaquil
Egypt|Cairo|Alexandria
El Salvador|San Salvador|Santa Ana
Eritrea|Asmara|Keren
Estonia|Tallinn|Tartu
Eswatini|Mbabane|Manzini
Ethiopia|Addis Ababa|Dire Dawa
Fiji|Suva|Nadi
Finland|Helsinki|Tampere
France|Paris|Lyon
Gabon|Libreville|Franceville
Georgia|Tbilisi|Batumi
Germany|Berlin|Munich
Ghana|Accra|Kumasi
Greece|Athens|Patras
Greenland|Nuuk|Sisimiut
Guinea|Conakry|Kankan
Guyana|Georgetown|Linden
Haiti|Port-au-Prince|Jacmel
Honduras|Tegucigalpa|La Ceiba
Hungary|Budapest|Debrecen
Iceland|Reykjavik|Akureyri
India|New Delhi|Mumbai
Iran|Tehran|Isfahan
Iraq|Baghdad|Basra
Ireland|Dublin|Cork
Italy|Rome|Milan
Ivory Coast|Yamoussoukro|Abidjan
Jamaica|Kingston|Montego Bay
Japan|Tokyo|Osaka
Jordan|Amman|Irbid
Kazakhstan|Astana|Almaty
Kenya|Nairobi|Mombasa
Kyrgyzstan|Bishkek|Osh
Laos|Vientiane|Pakse
Latvia|Riga|Daugavpils
Lebanon|Beirut|Sidon
Lesotho|Maseru|Mafeteng
Liberia|Monrovia|Buchanan
Libya|Tripoli|Benghazi
Liechtenstein|Vaduz|Schaan
Lithuania|Vilnius|Kaunas
Madagascar|Antananarivo|Toamasina
Malawi|Lilongwe|Blantyre
Malaysia|Kuala Lumpur|Ipoh
Mali|Bamako|Sikasso
Malta|Valletta|Mosta
Mauritania|Nouakchott|Nouadhibou
Mauritius|Port Louis|Curepipe
Micronesia|Palikir|Kolonia
Moldova|Chisinau|Balti
Mongolia|Ulaanbaatar|Erdenet
Montenegro|Podgorica|Niksic
Morocco|Rabat|Casablanca
Mozambique|Maputo|Beira
Myanmar|Naypyidaw|Yangon
Namibia|Windhoek|Walvis Bay
Nepal|Kathmandu|Pokhara
New Zealand|Wellington|Auckland
Nicaragua|Managua|Leon
Niger|Niamey|Zinder
Nigeria|Abuja|Lagos
North Korea|Pyongyang|Hamhung
North Macedonia|Skopje|Bitola
Northern Ireland|Belfast|Derry
Norway|Oslo|Bergen
Oman|Muscat|Salalah
Pakistan|Islamabad|Karachi
Palau|Ngerulmud|Koror
Papua New Guinea|Port Moresby|Lae
Paraguay|Asuncion|Encarnacion
Peru|Lima|Arequipa
Poland|Warsaw|Krakow
Portugal|Lisbon|Porto
Qatar|Doha|Al Khor
Romania|Bucharest|Timisoara
Russia|Moscow|Kazan
Rwanda|Kigali|Huye
Saint Lucia|Castries|Vieux Fort
Samoa|Apia|Vaitele
Saudi Arabia|Riyadh|Jeddah
Scotland|Edinburgh|Glasgow
Senegal|Dakar|Thies
Serbia|Belgrade|Novi Sad
Sierra Leone|Freetown|Kenema
Slovakia|Bratislava|Kosice
Slovenia|Ljubljana|Maribor
Somalia|Mogadishu|Kismayo
South Korea|Seoul|Busan
South Sudan|Juba|Malakal
Spain|Madrid|Seville
Sudan|Khartoum|Omdurman
Suriname|Paramaribo|Lelydorp
Sweden|Stockholm|Gothenburg
Switzerland|Bern|Zurich
Syria|Damascus|Aleppo
Tajikistan|Dushanbe|Khujand
Thailand|Bangkok|Chiang Mai
Togo|Lome|Sokode
Trinidad and Tobago|Port of Spain|San Fernando
Tunisia|Tunis|Sfax
Turkey|Ankara|Istanbul
Turkmenistan|Ashgabat|Turkmenabat
Uganda|Kampala|Gulu
Ukraine|Kyiv|Lviv
Uruguay|Montevideo|Salto
Uzbekistan|Tashkent|Samarkand
Vanuatu|Port Vila|Luganville
Venezuela|Caracas|Maracaibo
Vietnam|Hanoi|Da Nang
Wales|Cardiff|Swansea
Yemen|Sanaa|Aden
Zambia|Lusaka|Ndola
Zimbabwe|Harare|Bulawayo
"""


def country_rows() -> tuple[tuple[str, str, str], ...]:
    """Return (country, capital, another city) for every country, in alphabetical order."""
    rows = []
    for line in _TABLE.split("\n"):
        if line:
            country, capital, second_city = line.split("|")
            rows.append((country, capital, second_city))
    return tuple(rows)
